"""Signing on the command line: keys of the store and of users, files, tokens and ssh-agent."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Done, Shell


@pytest.fixture
def bot(kaifs: Shell, folder: Path) -> Shell:
    """A store with `bot@1.0.0`, not signed."""
    kaifs.fine("init", kaifs.store)
    kaifs.fine("import", "-q", "bot", folder, "--as", "1.0.0")
    kaifs.environment.pop("SSH_AUTH_SOCK", None)
    return kaifs


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    command: list[str | Path] = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-a", "1"]
    subprocess.run([*command, "-C", "mine", "-f", path], check=True)
    return path


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return make_key(tmp_path / "id")


@pytest.fixture
def agent(tmp_path: Path, bot: Shell) -> Iterator[Shell]:
    """The user's ssh-agent, empty, which commands find."""
    path = tmp_path / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    bot.environment["SSH_AUTH_SOCK"] = str(path)
    yield bot
    process.terminate()
    process.wait()
    process.stdout.close()


def add(agent: Shell, key: Path) -> str:
    """Give a key to the agent, and return its fingerprint."""
    subprocess.run(["ssh-add", "-q", key], env=agent.environment, check=True)
    return fingerprint(key)


def fingerprint(key: Path) -> str:
    done = subprocess.run(["ssh-keygen", "-l", "-f", key], capture_output=True, check=True)
    return done.stdout.decode().split()[1]


def expect(done: Done, code: str, text: str) -> None:
    """Check that a command has failed, in one line."""
    assert done.status == 1, done.err
    assert done.err.count("\n") == 1
    assert done.err.startswith(f"kaifs: {code}: ")
    assert text in done.err


def signed_by(shell: Shell, reference: str) -> tuple[str, str, str]:
    """Return status, principals and key of a version's signature."""
    found = shell("show", reference, "--json").document["signature"]
    return found["status"], found["principals"], found["key"]


def test_a_store_s_key_from_its_making_to_its_end(bot: Shell) -> None:
    assert bot.fine("key", "list") == "Store's key: none\n"
    expect(bot("sign", "bot@1.0.0"), "E175", "generate")
    said = bot.fine("key", "generate", "--comment", "the store's", "--as", "kaifs@example.com")
    first = said.split()[-1]
    assert bot.fine("sign", "bot@1.0.0").endswith(f"with {first} of kaifs@example.com\n")
    bot.fine("seal", "bot", "-q")
    bot.fine("key", "rotate")
    second = bot("key", "list", "--json").document["storeKeyFingerprint"]
    bot.fine("seal", "bot", "-q")
    shown = bot.fine("show", "bot")

    assert f"Signed:   good, by kaifs@example.com (ssh-ed25519 {second})" in shown
    assert signed_by(bot, "bot@1.0.1") == ("good", "kaifs@example.com", first)
    assert [line.split()[-1] for line in bot.fine("key", "list").splitlines()[-2:]] == [
        "store's",
        "store's",
    ]
    bot.fine("key", "revoke", first)
    assert signed_by(bot, "bot@1.0.1")[0] == "revoked"
    expect(bot("rollback", "bot", "1.0.1"), "E104", "E178")
    bot.fine("key", "revoke", second)
    expect(bot("seal", "bot"), "E178", "kaifs key rotate")
    assert bot.fine("key", "rotate").endswith(f"{second} stays revoked\n")


def test_export_prints_what_others_need(bot: Shell, tmp_path: Path) -> None:
    expect(bot("key", "export"), "E175", "generate")
    bot.fine("key", "generate", "-q")
    bot.fine("seal", "bot", "-q")
    public = tmp_path / "store.pub"
    public.write_text(bot.fine("key", "export"))
    allowed = tmp_path / "allowed"
    allowed.write_text(bot.fine("key", "export", "--allowed-signers"))

    assert fingerprint(public) == bot("key", "list", "--json").document["storeKeyFingerprint"]
    assert allowed.read_text().startswith('store namespaces="kaifs-record" ssh-ed25519 ')
    other = Shell(tmp_path / "other")
    other.fine("init", other.store)
    other.fine("key", "trust", public, "--as", "us", "--valid-before", "2040-01-01")
    (listed,) = other("key", "list", "--json").document["signers"]
    assert (listed["principals"], listed["isStoreKey"]) == ("us", False)
    with public.open("rb") as stdin:
        done = other.start("key", "revoke", "-", stdin=stdin)
        assert done.communicate()[0].decode().endswith("is revoked\n")


def test_a_user_s_key_signs_what_is_imported_sealed_and_signed_later(
    bot: Shell, folder: Path, mine: Path
) -> None:
    bot.fine("key", "trust", mine.with_suffix(".pub"), "--as", "me", "-q")
    bot.fine("import", "-q", "bot", folder, "--as", "2.0.0", "--sign-key", mine)
    bot.fine("seal", "-q", "bot", "3.0.0", "--sign-key", mine)
    bot.fine("sign", "-q", "bot@1.0.0", "--key", mine)

    for label in ("1.0.0", "2.0.0", "3.0.0"):
        assert signed_by(bot, f"bot@{label}") == ("good", "me", fingerprint(mine))


def test_a_key_that_the_store_does_not_trust_is_told(bot: Shell, mine: Path) -> None:
    done = bot("sign", "bot@1.0.0", "--key", mine)

    assert done.status == 0
    assert done.err == (f"kaifs: the store does not trust it: {fingerprint(mine)} is unknown\n")
    bot.fine("key", "trust", mine.with_suffix(".pub"), "--as", "me", "--valid-before", "20200101")
    assert signed_by(bot, "bot@1.0.0") == ("expired", "me", fingerprint(mine))
    bot.fine("policy", "bot", "--require-signature", "yes")
    expect(bot("seal", "bot", "--sign-key", mine), "E178", "was not valid")
    expect(bot("seal", "bot"), "E176", "kaifs key generate")
    expect(bot("snapshot", "bot@1.0.0"), "E178", "bot@1.0.0")
    bot.fine("policy", "bot", "--require-signature", "no")
    bot.fine("snapshot", "bot@1.0.0")


def test_keys_that_cannot_be_used_are_told_in_one_line(
    bot: Shell, mine: Path, tmp_path: Path
) -> None:
    garbage, closed, huge = (tmp_path / name for name in ("garbage", "open", "huge"))
    garbage.write_bytes(b"-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n\xff")
    garbage.chmod(0o600)
    closed.write_bytes(mine.read_bytes())
    closed.chmod(0o644)
    huge.write_bytes(bytes(1 << 20))
    for path, text in (
        (tmp_path / "missing", "No such file"),
        (tmp_path, "Is a directory"),
        (garbage, "not a private key"),
        (closed, "chmod 600"),
        (huge, "too large"),
        (mine.with_suffix(".pub"), "no ssh-agent"),
    ):
        expect(bot("sign", "bot@1.0.0", "--key", path), "E175", text)
    expect(bot("seal", "bot", "--sign-key", garbage), "E175", "not a private key")
    for path, text in ((mine, "a private key"), (huge, "too large")):
        expect(bot("key", "trust", path, "--as", "me"), "E175", text)
    expect(bot("key", "revoke", "SHA256:" + "A" * 43), "E175", "no such key")
    expect(bot("key", "trust", mine.with_suffix(".pub"), "--as", "a b"), "E140", "principals")
    assert bot("key", "list", "--json").document["signers"] == []
    for wrong in (("key",), ("key", "trust", mine), ("sign", "bot@1.0.0", "x")):
        assert bot(*wrong).status == 2


def test_the_passphrase_is_asked_for_at_the_terminal(bot: Shell, tmp_path: Path) -> None:
    key = make_key(tmp_path / "secret", passphrase="open sesame")

    assert typed(bot, "open sesame\n", "sign", "bot@1.0.0", "--key", str(key)) == 0
    assert signed_by(bot, "bot@1.0.0")[2] == fingerprint(key)
    assert typed(bot, "guess\n", "sign", "bot@1.0.0", "--key", str(key)) == 1
    process = bot.start("sign", "bot@1.0.0", "--key", str(key), start_new_session=True)
    assert b"no terminal to ask at; let ssh-agent sign" in process.communicate()[1]


def typed(shell: Shell, text: str, *arguments: str) -> int:
    """Run a command on a terminal of its own, type what it asks for, and return its status."""
    master, slave = os.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", sys.executable, "-m", "kaifs", *arguments],
        env=shell.environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    said = b""
    while b"Passphrase of" not in said:
        said += os.read(master, 4096)
    os.write(master, text.encode())
    status = process.wait(timeout=60)
    os.close(master)
    assert text.strip().encode() not in said
    return status


def test_ssh_agent_signs(agent: Shell, mine: Path, tmp_path: Path) -> None:
    expect(agent("sign", "bot@1.0.0", "--agent"), "E175", "ssh-add")
    added = add(agent, mine)
    mine.unlink()
    agent("sign", "bot@1.0.0", "--agent")
    assert signed_by(agent, "bot@1.0.0") == ("unknown", "", added)
    other = add(agent, make_key(tmp_path / "other"))

    expect(agent("sign", "bot@1.0.0", "--agent"), "E175", f"{added}, {other}")
    agent("sign", "bot@1.0.0", "--agent", other)
    agent("seal", "bot", "--sign-key", mine.with_suffix(".pub"))
    assert signed_by(agent, "bot@1.0.0")[2] == other
    assert signed_by(agent, "bot@1.0.1")[2] == added


@pytest.mark.parametrize(
    "arguments", [["--help"], ["snapshot", "bot"], ["seal", "bot"], ["key", "list"]]
)
def test_what_does_not_sign_does_not_load_the_cryptography(
    bot: Shell, arguments: list[str]
) -> None:
    """It takes 30 ms."""
    program = (
        "import sys\nfrom kaifs.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    assert 'cryptography' not in sys.modules\n"
    )
    bot.environment["PYTHONPATH"] = str(ROOT)

    subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=bot.environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
