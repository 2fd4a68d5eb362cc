"""kaifs: the file system that agents run from.

For programs, on a store that has a daemon or none::

    from kaifs import AgentVersionManager, SnapshotIsolationManager, SnapshotOptions

    versions = AgentVersionManager("bot", "/srv/store")
    versions.import_version("/srv/bot", "1.0.0")
    manager = SnapshotIsolationManager("/srv/store")
    snapshot = manager.create_isolated_snapshot("bot", "1.0.0", SnapshotOptions(memory_limit="1g"))

Names are those of the specification; methods and attributes are in snake_case.
Everything that can be expected to fail raises a `KaifsError`, whose `code` is a
`VersionErrorCode` or one of our own, and whose `message` and `details` say more.
A name is loaded when it is first used: `import kaifs` alone costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kaifs.api.security import VersionSecurityManager
    from kaifs.api.snapshots import SnapshotIsolationManager, SnapshotOptions, read_suite
    from kaifs.api.versions import AgentVersion, AgentVersionManager
    from kaifs.base.errors import KaifsError, VersionErrorCode
    from kaifs.service.commit import CommitResult
    from kaifs.service.findings import ValidationResult
    from kaifs.service.isolation import IsolatedSnapshot, IsolationConfig
    from kaifs.service.list_ import VersionInfo
    from kaifs.service.record import VersionDependency, VersionedFile, VersionMetadata
    from kaifs.service.rollback import RollbackResult, RollbackStep
    from kaifs.service.suite import TestCase, TestSuite
    from kaifs.service.suite_runner import TestResult

__version__ = "0.1.0"

__all__ = [
    "AgentVersion",
    "AgentVersionManager",
    "CommitResult",
    "IsolatedSnapshot",
    "IsolationConfig",
    "KaifsError",
    "RollbackResult",
    "RollbackStep",
    "SnapshotIsolationManager",
    "SnapshotOptions",
    "TestCase",
    "TestResult",
    "TestSuite",
    "ValidationResult",
    "VersionDependency",
    "VersionErrorCode",
    "VersionInfo",
    "VersionMetadata",
    "VersionSecurityManager",
    "VersionedFile",
    "__version__",
    "read_suite",
]

_MODULES: Final = {
    "AgentVersion": "api.versions",
    "AgentVersionManager": "api.versions",
    "CommitResult": "service.commit",
    "IsolatedSnapshot": "service.isolation",
    "IsolationConfig": "service.isolation",
    "KaifsError": "base.errors",
    "RollbackResult": "service.rollback",
    "RollbackStep": "service.rollback",
    "SnapshotIsolationManager": "api.snapshots",
    "SnapshotOptions": "api.snapshots",
    "TestCase": "service.suite",
    "TestResult": "service.suite_runner",
    "TestSuite": "service.suite",
    "ValidationResult": "service.findings",
    "VersionDependency": "service.record",
    "VersionErrorCode": "base.errors",
    "VersionInfo": "service.list_",
    "VersionMetadata": "service.record",
    "VersionSecurityManager": "api.security",
    "VersionedFile": "service.record",
    "read_suite": "api.snapshots",
}
"""Where each name is defined."""


def __getattr__(name: str) -> Any:
    """Load *name*. Source: PEP 562."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"kaifs.{module}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
