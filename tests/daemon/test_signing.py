"""Signing through the daemon: the user's process signs, the mount serves, ssh-keygen checks."""

import subprocess
from pathlib import Path

import pytest

from kaifs.api.access import call
from kaifs.api.exchange import import_folder
from kaifs.api.signing import file_signer, sign_version
from kaifs.api.versions import AgentVersionManager
from kaifs.base.errors import BadSignatureError, KaifsError, SigningKeyError
from kaifs.service import key as keys
from kaifs.service.record import Description
from kaifs.service.steps import Signer
from tests.daemon.site import Site

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture(params=["kernel", "pyfuse3"])
def served(request: pytest.FixtureRequest, site: Site) -> Site:
    """A mounted store with a key and an empty agent called `agent`, on both transports."""
    call(site.store, "key", keys.Params(action=keys.Generate()))
    site.mount(f"transport={request.param}")
    (site.mountpoint / "agent").mkdir()
    return site


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A key of the user's, which nobody trusts yet."""
    path = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def is_verified(site: Site, label: str, name: str) -> bool:
    """Whether ssh-keygen takes what is served, with the store's own file of trusted signers."""
    meta = site.mountpoint / "agent/@meta"
    command: list[str | Path] = ["ssh-keygen", "-Y", "verify", "-n", "kaifs-record", "-I", name]
    command += ["-f", site.store / "keys" / "allowed_signers"]
    command += ["-s", meta / f"{label}.json.sig"]
    with (meta / f"{label}.json").open("rb") as record:
        return (
            subprocess.run(command, stdin=record, capture_output=True, check=False).returncode == 0
        )


def trust(site: Site, key: Path, name: str = "me") -> None:
    line = key.with_suffix(".pub").read_text()
    call(site.store, "key", keys.Params(action=keys.Trust(key=line, principals=name)))


def test_what_is_served_is_what_ssh_keygen_verifies(
    served: Site, mine: Path, tmp_path: Path
) -> None:
    manager = AgentVersionManager("agent", served.store)
    signer = file_signer(mine)
    trust(served, mine)
    (served.current / "a.txt").write_text("one\n")
    manager.seal("1.0.0")
    (served.current / "a.txt").write_text("two\n")
    manager.seal("1.1.0", signer=signer)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("three\n")
    import_folder(served.store, "agent", folder, "1.2.0", Description(), signer=signer)

    assert is_verified(served, "1.0.0", "store")
    assert is_verified(served, "1.1.0", "me")
    assert is_verified(served, "1.2.0", "me")
    assert not is_verified(served, "1.2.0", "store")


def test_another_signature_is_served_at_once(served: Site, mine: Path) -> None:
    AgentVersionManager("agent", served.store).seal("1.0.0")
    path = served.mountpoint / "agent/@meta/1.0.0.json.sig"
    first = path.read_bytes()
    trust(served, mine)

    signed = sign_version(served.store, "agent@1.0.0", file_signer(mine))

    assert signed.signature is not None
    assert (signed.signature.status, signed.signature.principals) == ("good", "me")
    assert path.read_bytes() != first
    assert is_verified(served, "1.0.0", "me")
    sign_version(served.store, "agent@1.0.0")
    assert is_verified(served, "1.0.0", "store")


class _Stopped(BaseException):
    """As Ctrl-C."""


def refuse(record: bytes) -> bytes:
    raise SigningKeyError("no")


def stop(record: bytes) -> bytes:
    raise _Stopped


def answer_nonsense(record: bytes) -> bytes:
    return b"nonsense"


@pytest.mark.parametrize(
    ("signer", "raised"),
    [(refuse, SigningKeyError), (stop, _Stopped), (answer_nonsense, BadSignatureError)],
)
def test_a_user_who_does_not_sign_leaves_no_version_behind(
    mounted: Site, tmp_path: Path, signer: Signer, raised: type[BaseException]
) -> None:
    manager = AgentVersionManager("agent", mounted.store)
    (mounted.current / "a.txt").write_text("one\n")

    with pytest.raises(raised):
        manager.seal("1.0.0", signer=signer)
    with pytest.raises(raised):
        import_folder(
            mounted.store,
            "new",
            tmp_path / "mnt" / "agent" / "current",
            "1.0.0",
            Description(),
            signer=signer,
        )

    assert list((mounted.mountpoint / "agent/@versions").iterdir()) == []
    assert not (mounted.mountpoint / "new").exists()
    manager.seal("1.0.0")
    assert (mounted.mountpoint / "agent/@versions/1.0.0/a.txt").read_text() == "one\n"


def test_a_refusal_comes_through_the_socket_as_what_it_is(mounted: Site) -> None:
    with pytest.raises(KaifsError) as caught:
        call(mounted.store, "key", keys.Params(action=keys.Trust(key="nonsense", principals="me")))

    assert isinstance(caught.value, SigningKeyError)
