"""The user's ssh-agent: a real one, and ones that make no sense."""

import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.api.signing import agent_signer, file_signer
from kaifs.api.ssh_agent import agent_keys, find_agent_key
from kaifs.base.errors import SigningKeyError
from kaifs.base.sshsig import parse_armored

RECORD = b'{"version":"1.0.0"}'


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for keys, and an agent without any that this process finds."""
    path = tmp_path / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield tmp_path
    process.terminate()
    process.wait()
    process.stdout.close()


def add(path: Path, *kind: str) -> Path:
    """Make a key, give it to the agent, and return the file of its public half."""
    make: list[str | Path] = ["ssh-keygen", "-q", "-N", "", "-C", "a comment", "-f", path]
    subprocess.run([*make, "-t", *kind], check=True)
    subprocess.run(["ssh-add", "-q", path], check=True)
    path.unlink()
    return path.with_suffix(".pub")


@pytest.mark.parametrize("kind", [("ed25519",), ("rsa", "-b", "2048"), ("ecdsa", "-b", "384")])
def test_an_agent_signs_with_what_it_holds(agent: Path, kind: tuple[str, ...]) -> None:
    public = add(agent / "key", *kind)

    for signer in (agent_signer(), file_signer(public)):
        parse_armored(signer(RECORD)).verify(RECORD, "kaifs-record")

    (key,) = agent_keys()
    assert key.line + "\n" == public.read_text()


def test_keys_that_do_not_sign_here_are_left_out(agent: Path) -> None:
    add(agent / "short", "rsa", "-b", "1024")
    good = add(agent / "good", "ed25519")

    assert find_agent_key(None).line + "\n" == good.read_text()


def test_an_agent_that_has_lost_the_key_refuses(agent: Path) -> None:
    add(agent / "key", "ed25519")
    signer = agent_signer()
    subprocess.run(["ssh-add", "-q", "-D"], check=True, stderr=subprocess.DEVNULL)

    with pytest.raises(SigningKeyError, match="refuses"):
        signer(RECORD)


def test_without_an_agent_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(SigningKeyError, match="SSH_AUTH_SOCK is not set"):
        agent_keys()
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "nothing"))
    with pytest.raises(SigningKeyError, match="No such file"):
        agent_keys()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "ended the conversation"),
        (b"\0\0", "ended the conversation"),
        (struct.pack(">I", 1 << 30), "makes no sense"),
        (struct.pack(">I", 0), "makes no sense"),
        (struct.pack(">IB", 1, 5), "refuses"),
        (struct.pack(">IBI", 5, 12, 7), "makes no sense"),
        (struct.pack(">IBI", 5, 12, 0), "no key that can be used"),
        (struct.pack(">IBIII", 13, 12, 1, 0, 0), "no key that can be used"),
    ],
)
def test_an_agent_that_makes_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, text: str
) -> None:
    path = tmp_path / "fake.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        with pytest.raises(SigningKeyError, match=text):
            find_agent_key(None)
        thread.join()
