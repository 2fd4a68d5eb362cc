"""Whether versions are what they were, and what is set aside, for programs.

The specification's VersionSecurityManager::

    manager = VersionSecurityManager("/srv/store")
    found = manager.validate_version_integrity("bot", "1.0.0")
    if not found.valid:
        for line in found.errors:
            print(line)

Every method goes through the daemon if one serves the store, and opens the
store itself if none does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from kaifs.api.access import call, store_path
from kaifs.service import key, quarantine_add, quarantine_list, quarantine_release, verify
from kaifs.service.quarantine_list import QuarantinedVersion
from kaifs.service.steps import OnProgress, Signer
from kaifs.service.verify import Validation

if TYPE_CHECKING:
    from kaifs.service import sign


class VersionSecurityManager:
    """The specification's VersionSecurityManager, on one store.

    Every failure that can be expected is a `KaifsError`, with the store left as it was.
    """

    def __init__(self, store: str | os.PathLike[str] | None = None) -> None:
        """Use *store*: a path; None is `$KAIFS_STORE`, or the user's default."""
        self.store: Final = store_path(store)

    # --- validation -------------------------------------------------------------------------

    def validate_version_integrity(
        self, agent_name: str, version: str, *, full: bool = False, reproduce: bool = False
    ) -> Validation:
        """Check signature, checksums, dependencies, permissions and lineage of a version.

        What is wrong is a result: `valid` is False, and `errors` has a line for each
        finding. A version whose data, record or signature is damaged is in quarantine
        then, which `quarantined` tells.

        Args:
            agent_name: The agent.
            version: The version's label.
            full: Read everything, also what verified before and cannot have changed since.
            reproduce: Seal the version again from its files, and compare.

        Raises:
            AgentNotFoundError, InvalidVersionError: there is no such version.
            AccessDeniedError: a file of it is closed to the caller.
        """
        (found,) = self.verify(
            (f"{agent_name}@{version}",), full=full, reproduce=reproduce
        ).validations
        return found

    def verify(
        self,
        references: Sequence[str] = (),
        *,
        full: bool = False,
        reproduce: bool = False,
        on_progress: OnProgress | None = None,
    ) -> verify.Result:
        """Check what *references* name; without one every version that the caller may read.

        Raises:
            KaifsError: as `validate_version_integrity`.
        """
        params = verify.Params(references=tuple(references), full=full, reproduce=reproduce)
        found: verify.Result = call(self.store, "verify", params, on_progress=on_progress)
        return found

    # --- quarantine -------------------------------------------------------------------------

    def quarantine_corrupted_version(
        self, agent_name: str, version: str, reason: str
    ) -> QuarantinedVersion:
        """Set a version aside: nobody can use it until it is released. Administrators are told.

        Args:
            agent_name: The agent.
            version: The version's label.
            reason: Why, in one line.

        Raises:
            InvalidVersionError: there is no such version, or it is in quarantine already.
            AccessDeniedError: the agent is somebody else's.
        """
        params = quarantine_add.Params(reference=f"{agent_name}@{version}", reason=reason)
        made: QuarantinedVersion = call(self.store, "quarantine-add", params)
        return made

    def list_quarantine(self, agent_name: str | None = None) -> tuple[QuarantinedVersion, ...]:
        """Return what is in quarantine: of an agent, or of all that the caller may look into.

        Raises:
            AgentNotFoundError: there is no such agent.
            AccessDeniedError: its folder is closed to the caller.
        """
        params = quarantine_list.Params(agent=agent_name)
        found: quarantine_list.Result = call(self.store, "quarantine-list", params)
        return found.versions

    def release_version(
        self, agent_name: str, version: str, *, on_progress: OnProgress | None = None
    ) -> quarantine_release.Result:
        """Give a version back, if it verifies again; all of it is read for that.

        Raises:
            InvalidVersionError: it is not in quarantine.
            ChecksumMismatchError: it is still damaged.
            AccessDeniedError: the agent is somebody else's.
        """
        params = quarantine_release.Params(reference=f"{agent_name}@{version}")
        done: quarantine_release.Result = call(
            self.store, "quarantine-release", params, on_progress=on_progress
        )
        return done

    # --- signatures -------------------------------------------------------------------------

    def sign_version(
        self, agent_name: str, version: str, signer: Signer | None = None
    ) -> sign.Result:
        """Sign a version, in place of the signature that it has.

        Args:
            agent_name: The agent.
            version: The version's label.
            signer: What signs: see `kaifs.api.signing`; None is the store's own key.

        Raises:
            SigningKeyError: there is no key that could sign.
            KaifsError: as `kaifs.api.signing.sign_version`.
        """
        from kaifs.api.signing import sign_version

        return sign_version(self.store, f"{agent_name}@{version}", signer)

    def list_keys(self) -> key.Result:
        """Return the store's own key, and whom it trusts."""
        return self._key(key.List())

    def trust_key(
        self,
        public_key: str,
        principals: str,
        *,
        valid_after: str | None = None,
        valid_before: str | None = None,
    ) -> key.Result:
        """Trust what a key signs.

        Args:
            public_key: What its `.pub` file holds.
            principals: In whose name it signs: names or patterns with commas between.
            valid_after: As in an allowed-signers file; None: always. Source: ssh-keygen(1).
            valid_before: Likewise.

        Raises:
            BadSignatureError, ArgumentValueError: the key or a time makes no sense.
            AccessDeniedError: the store is somebody else's.
        """
        action = key.Trust(
            key=public_key,
            principals=principals,
            valid_after=valid_after,
            valid_before=valid_before,
        )
        return self._key(action)

    def revoke_key(self, public_key: str) -> key.Result:
        """Refuse everything that a key has signed, whenever that was.

        Args:
            public_key: What its `.pub` file holds, or its fingerprint.

        Raises:
            KaifsError: as `trust_key`.
        """
        return self._key(key.Revoke(public_key))

    def _key(self, action: key.Action) -> key.Result:
        result: key.Result = call(self.store, "key", key.Params(action=action))
        return result
