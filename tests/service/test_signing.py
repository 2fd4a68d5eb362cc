"""Signatures of versions: made with every version, checked, required, replaced."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace as replaced

from kaifs.base import sshsig
from kaifs.base.errors import (
    AccessDeniedError,
    BadSignatureError,
    KaifsError,
    RollbackValidationError,
    SignersFileError,
    SigningKeyError,
    UnsignedError,
    UntrustedKeyError,
)
from kaifs.base.ssh_keys import PrivateKey, generate_private, load_private, public_of_private
from kaifs.linux.files import write_durably
from kaifs.meta.records import VersionRecord
from kaifs.service import key as keys
from kaifs.service import keyring
from kaifs.service.context import Caller
from kaifs.service.findings import Findings
from kaifs.service.host_source import HostSource
from kaifs.service.keyring import NAMESPACE
from kaifs.service.record import record_hash
from kaifs.service.signing import check_signature
from kaifs.service.steps import Sign, Signature, Signer
from kaifs.service.switching import finish_due_backups
from kaifs.service.verbs import VERBS
from tests.service.desk import STRANGER, Desk
from tests.service.lab import Lab, suite


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.txt").write_text("one\n")
    return folder


@pytest.fixture
def signed(desk: Desk, project: Path) -> Desk:
    """A store with a key, in it `bot@1.0.0`, signed."""
    run_key(desk, keys.Generate())
    desk.take("bot", "1.0.0", project)
    return desk


def run_key(desk: Desk, action: keys.Action, **options: Any) -> keys.Result:
    result: keys.Result = desk.run("key", action=action, **options)
    return result


def new_key() -> PrivateKey:
    return load_private(generate_private())


def signer_with(key: PrivateKey, namespace: str = NAMESPACE) -> Signer:
    return lambda record: sshsig.sign(record, namespace, key.public, key.sign).armored()


def trust(desk: Desk, key: PrivateKey, name: str = "me", **validity: str) -> None:
    run_key(desk, keys.Trust(key=key.public.line, principals=name, **validity))


def revoke(desk: Desk, key: PrivateKey) -> None:
    run_key(desk, keys.Revoke(key.public.line))


def require(desk: Desk, *, required: bool = True) -> None:
    desk.run("policy", agent="bot", require_signature=required)


def version_of(desk: Desk, label: str, agent: str = "bot") -> VersionRecord:
    return desk.store.get_version(desk.store.get_agent(agent), label)


def status_of(desk: Desk, label: str) -> str | None:
    shown = desk.run("show", reference=f"bot@{label}", has_signature=True).signature
    return None if shown is None else shown.status


def findings(desk: Desk, label: str) -> Findings:
    return check_signature(desk.context, desk.store.get_agent("bot"), version_of(desk, label))


def forge(desk: Desk, label: str, **changes: Any) -> None:
    """Change a version's record behind the store's back."""
    version = replaced(version_of(desk, label), **changes)
    desk.store.remove_version(version.agent_id, label)
    root = desk.store.root(version.root)
    desk.store.set_root_state(root, 1)  # type: ignore[arg-type]  # SEALED
    desk.store.add_version(version)


def verified_by_keygen(desk: Desk, label: str, name: str, folder: Path) -> bool:
    """Whether ssh-keygen takes a version's signature with the store's own files."""
    version = version_of(desk, label)
    made_at = msgspec.json.decode(version.record)["metadata"]["created"]
    moment = "".join(letter for letter in made_at[:19] if letter.isdigit()) + "Z"
    signature = folder / "signature"
    signature.write_bytes(version.signature)
    keys_folder = desk.path / "keys"
    command: list[str | Path] = ["ssh-keygen", "-Y", "verify", "-n", NAMESPACE, "-I", name]
    command += ["-f", keys_folder / "allowed_signers", "-s", signature]
    command += ["-O", f"verify-time={moment}"]
    if (keys_folder / "revoked_keys").exists():
        command += ["-r", keys_folder / "revoked_keys"]
    done = subprocess.run(command, input=version.record, capture_output=True, check=False)
    return done.returncode == 0


# --- made with every version -----------------------------------------------------------------


def test_a_store_without_a_key_signs_nothing(desk: Desk, project: Path) -> None:
    desk.take("bot", "1.0.0", project)

    assert version_of(desk, "1.0.0").signature == b""
    assert findings(desk, "1.0.0") == Findings()


def test_import_seal_and_backups_are_signed_by_the_stores_key(signed: Desk, tmp_path: Path) -> None:
    signed.write("bot", b"a.txt", b"two\n")
    signed.run("seal", agent="bot")
    signed.write("bot", b"a.txt", b"lost?\n")
    signed.run("rollback", agent="bot", version="1.0.0")

    for label in ("1.0.0", "1.0.1", "1.0.2-rollback.1"):
        assert status_of(signed, label) == "good"
        assert findings(signed, label) == Findings()
        assert verified_by_keygen(signed, label, "store", tmp_path)


def test_a_commit_is_signed_by_the_stores_key(signed: Desk, tmp_path: Path) -> None:
    lab = committable(signed, tmp_path)

    signed.run("commit", reference="snap")

    assert status_of(lab.desk, "1.0.1") == "good"


def committable(desk: Desk, folder: Path) -> Lab:
    desk.run("snapshot", reference="bot", name="snap")
    lab = Lab(desk, folder)
    assert lab.test("snap", suite=suite("true"), source="suite.toml").success
    return lab


def test_a_signature_covers_the_lineage(signed: Desk) -> None:
    """The parent's record hash is part of what is signed."""
    signed.write("bot", b"a.txt", b"two\n")
    signed.run("seal", agent="bot")

    child = msgspec.json.decode(version_of(signed, "1.0.1").record)

    assert child["parentHash"] == record_hash(version_of(signed, "1.0.0").record)
    other = version_of(signed, "1.0.1").record.replace(child["parentHash"].encode(), b"0" * 64)
    forge(signed, "1.0.1", record=other)
    assert status_of(signed, "1.0.1") == "bad"


def test_a_backup_that_a_crash_left_is_signed_when_the_store_is_opened(
    signed: Desk, tmp_path: Path
) -> None:
    signed.write("bot", b"a.txt", b"uncommitted\n")
    steps = VERBS["rollback"].run(
        signed.context, VERBS["rollback"].params(agent="bot", version="1.0.0")
    )
    next(steps)
    signed.store.commit()
    after = signed.crashed(tmp_path / "after")
    steps.close()

    finish_due_backups(after.context)

    assert status_of(after, "1.0.1-rollback.1") == "good"
    after.store.close()


def test_a_backup_is_made_even_if_the_stores_key_is_of_no_use(signed: Desk) -> None:
    """What is saved is worth more unsigned than not at all; nor may it keep a store closed."""
    signed.write("bot", b"a.txt", b"uncommitted\n")
    (signed.path / "keys" / "signing_key").write_bytes(b"broken")

    signed.run("rollback", agent="bot", version="1.0.0")

    assert version_of(signed, "1.0.1-rollback.1").signature == b""


# --- with a key of the user's -------------------------------------------------------------------


def test_seal_import_and_commit_are_signed_by_the_users_process(
    desk: Desk, project: Path, tmp_path: Path
) -> None:
    mine = new_key()
    signer = signer_with(mine)
    trust(desk, mine)

    items = iter(HostSource(project, desk.path))
    desk.run("import", items=items, agent="bot", label="1.0.0", caller_signs=True, signer=signer)
    desk.write("bot", b"a.txt", b"two\n")
    desk.run("seal", agent="bot", caller_signs=True, signer=signer)
    committable(desk, tmp_path)
    desk.run("commit", reference="snap", caller_signs=True, signer=signer)

    for label in ("1.0.0", "1.0.1", "1.0.2"):
        shown = desk.run("show", reference=f"bot@{label}", has_signature=True).signature
        assert (shown.status, shown.principals) == ("good", "me")
        assert verified_by_keygen(desk, label, "me", tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        lambda record: b"nonsense",
        lambda record: signer_with(new_key())(record + b" "),
        lambda record: signer_with(new_key(), "file")(record),
    ],
    ids=["nonsense", "other bytes", "other namespace"],
)
def test_what_is_no_signature_of_the_record_leaves_nothing_behind(
    signed: Desk, project: Path, answer: Signer
) -> None:
    before = signed.state()
    new: dict[str, Any] = {"agent": "new", "label": "1.0.0"}

    with pytest.raises(BadSignatureError):
        signed.run("seal", agent="bot", caller_signs=True, signer=answer)
    items = iter(HostSource(project, signed.path))
    with pytest.raises(BadSignatureError):
        signed.run("import", items=items, caller_signs=True, signer=answer, **new)

    assert signed.state() == before


def test_a_caller_who_does_not_answer_leaves_nothing_behind(signed: Desk) -> None:
    before = signed.state()
    params = VERBS["seal"].params(agent="bot", caller_signs=True)

    steps = VERBS["seal"].run(signed.context, params)
    while not isinstance(next(steps), Sign):
        pass
    with pytest.raises(SigningKeyError, match="no signature came"):
        steps.send(None)

    assert signed.state() == before


def test_what_was_signed_is_what_is_kept(desk: Desk, project: Path) -> None:
    seen: list[bytes] = []
    key = new_key()

    def sign(record: bytes) -> bytes:
        seen.append(record)
        return signer_with(key)(record)

    desk.take("bot", "1.0.0", project)
    desk.run("seal", agent="bot", caller_signs=True, signer=sign)

    assert seen == [version_of(desk, "1.0.1").record]


# --- signing again ----------------------------------------------------------------------------------


def sign_it(desk: Desk, label: str, signer: Signer | None = None, **options: Any) -> Any:
    reference = f"bot@{label}"
    if signer is None:
        return desk.run("sign", reference=reference, **options)
    record = desk.run("sign", reference=reference, caller_signs=True).record
    signature = signer(record)
    return desk.run("sign", reference=reference, caller_signs=True, signature=signature, **options)


def test_a_version_is_signed_later_and_again(desk: Desk, project: Path) -> None:
    desk.take("bot", "1.0.0", project)
    record = version_of(desk, "1.0.0").record
    mine = new_key()

    with pytest.raises(SigningKeyError, match="the store has none"):
        sign_it(desk, "1.0.0")
    assert sign_it(desk, "1.0.0", signer_with(mine)).signature.status == "unknown"
    trust(desk, mine)
    assert status_of(desk, "1.0.0") == "good"
    run_key(desk, keys.Generate())
    again = sign_it(desk, "1.0.0").signature

    assert (again.status, again.principals) == ("good", "store")
    version = version_of(desk, "1.0.0")
    assert (version.record, version.signatures) == (record, 2)
    assert version.signed_ns == desk.clock.now_ns()


def test_a_signature_of_another_record_is_refused(signed: Desk) -> None:
    signed.write("bot", b"a.txt", b"two\n")
    signed.run("seal", agent="bot")
    before = signed.state()

    with pytest.raises(BadSignatureError):
        signed.run(
            "sign",
            reference="bot@1.0.1",
            caller_signs=True,
            signature=version_of(signed, "1.0.0").signature,
        )

    assert signed.state() == before
    assert status_of(signed, "1.0.1") == "good"


# --- keys -----------------------------------------------------------------------------------------------


def test_the_stores_key_is_its_owners_alone(signed: Desk) -> None:
    folder = signed.path / "keys"
    owner = signed.path.stat()

    for path, mode in ((folder, 0o700), (folder / "signing_key", 0o600)):
        status = path.stat()
        assert (status.st_mode & 0o777, status.st_uid) == (mode, owner.st_uid)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: gives files to another user")
def test_root_makes_keys_for_whoever_the_store_belongs_to(desk: Desk) -> None:
    os.chown(desk.path, STRANGER.uid, STRANGER.gid)

    run_key(desk, keys.Generate())

    folder = desk.path / "keys"
    for path in (folder, *folder.iterdir()):
        assert (path.stat().st_uid, path.stat().st_gid) == (STRANGER.uid, STRANGER.gid)
    os.chown(desk.path, os.getuid(), os.getgid())


def test_a_key_that_others_may_read_does_not_sign(signed: Desk) -> None:
    (signed.path / "keys" / "signing_key").chmod(0o640)

    with pytest.raises(SigningKeyError, match="others may read it"):
        signed.run("seal", agent="bot")


def test_a_second_key_is_not_generated(signed: Desk) -> None:
    with pytest.raises(SigningKeyError, match="rotate"):
        run_key(signed, keys.Generate())


def test_after_a_rotation_the_old_key_counts_for_the_past_alone(
    signed: Desk, tmp_path: Path
) -> None:
    old = load_private((signed.path / "keys" / "signing_key").read_bytes())
    first = run_key(signed, keys.List()).store_key_fingerprint

    rotated = run_key(signed, keys.Rotate())
    signed.write("bot", b"a.txt", b"two\n")
    signed.run("seal", agent="bot")
    signed.run("seal", agent="bot", caller_signs=True, signer=signer_with(old))

    assert rotated.previous == first != rotated.store_key_fingerprint
    assert [status_of(signed, label) for label in ("1.0.0", "1.0.1", "1.0.2")] == [
        "good",
        "good",
        "expired",
    ]
    assert findings(signed, "1.0.2").errors[0].text.startswith("signed by a key that was not valid")
    assert not findings(signed, "1.0.2").has_damage
    assert [
        verified_by_keygen(signed, label, "store", tmp_path)
        for label in ("1.0.0", "1.0.1", "1.0.2")
    ] == [True, True, False]


def test_a_store_without_a_key_has_nothing_to_rotate(desk: Desk) -> None:
    with pytest.raises(SigningKeyError, match="generate"):
        run_key(desk, keys.Rotate())


def test_what_a_revoked_key_has_signed_is_refused_whenever_it_did(
    signed: Desk, tmp_path: Path
) -> None:
    """By rotation it would go on counting for the past; whoever has it can backdate a record."""
    run_key(signed, keys.Rotate())
    signed.write("bot", b"a.txt", b"two\n")
    signed.run("seal", agent="bot")
    old = next(one.key for one in run_key(signed, keys.List()).signers if one.valid_before)

    result = run_key(signed, keys.Revoke(old))

    assert result.revoked == (old,)
    assert status_of(signed, "1.0.0") == "revoked"
    assert status_of(signed, "1.0.1") == "good"
    assert not findings(signed, "1.0.0").is_valid
    assert not findings(signed, "1.0.0").has_damage
    assert not verified_by_keygen(signed, "1.0.0", "store", tmp_path)
    assert verified_by_keygen(signed, "1.0.1", "store", tmp_path)
    with pytest.raises(RollbackValidationError, match="E178"):
        signed.run("rollback", agent="bot", version="1.0.0")
    with pytest.raises(UntrustedKeyError, match="revoked"):
        signed.run("snapshot", reference="bot@1.0.0")
    with pytest.raises(UntrustedKeyError, match="revoked"):
        signed.run("seal", agent="bot", source="bot@1.0.0")


def test_a_revoked_key_signs_nothing_more(signed: Desk) -> None:
    mine = new_key()
    revoke(signed, mine)

    with pytest.raises(UntrustedKeyError):
        sign_it(signed, "1.0.0", signer_with(mine))
    own = run_key(signed, keys.List()).store_key
    assert own is not None
    run_key(signed, keys.Revoke(own))
    with pytest.raises(UntrustedKeyError, match="rotate"):
        signed.run("seal", agent="bot")
    run_key(signed, keys.Rotate())
    signed.run("seal", agent="bot")


def test_a_key_is_revoked_by_the_fingerprint_of_what_it_signed(desk: Desk, project: Path) -> None:
    """The list holds whole keys: ssh-keygen does not take fingerprints there."""
    mine = new_key()
    desk.take("bot", "1.0.0", project)
    sign_it(desk, "1.0.0", signer_with(mine))

    with pytest.raises(SigningKeyError, match="no such key"):
        run_key(desk, keys.Revoke(new_key().public.fingerprint))
    run_key(desk, keys.Revoke(mine.public.fingerprint))

    assert (desk.path / "keys" / "revoked_keys").read_text() == mine.public.line + "\n"
    with pytest.raises(SigningKeyError, match="already"):
        revoke(desk, mine)


def test_trust_may_be_limited_in_time(desk: Desk, project: Path) -> None:
    """The manual clock begins in November 2023."""
    late, early, now = new_key(), new_key(), new_key()
    trust(desk, late, valid_before="2023-01-01T00:00:00Z")
    trust(desk, early, valid_after="20300101Z")
    trust(desk, now, valid_after="20230101Z", valid_before="20300101Z")
    desk.take("bot", "1.0.0", project)

    for key, wanted in ((late, "expired"), (early, "expired"), (now, "good")):
        assert sign_it(desk, "1.0.0", signer_with(key)).signature.status == wanted


def test_nonsense_is_not_trusted(desk: Desk) -> None:
    key = new_key().public.line
    for action in (
        keys.Trust(key="nonsense", principals="me"),
        keys.Trust(key=key, principals="a b"),
        keys.Trust(key=key, principals="me", valid_before="soon"),
        keys.Trust(key=key, principals="me", valid_before="20250101", valid_after="20260101"),
        keys.Trust(key=f"{key}\n{key}", principals="me"),
        keys.Generate(principals="a\nb"),
        keys.Generate(comment="a\nb"),
        keys.Revoke("SHA256:short"),
        keys.Revoke("\ud800"),
    ):
        with pytest.raises(KaifsError):
            run_key(desk, action)
    run_key(desk, keys.Trust(key=key, principals="me"))
    with pytest.raises(SigningKeyError, match="already"):
        run_key(desk, keys.Trust(key=key, principals="me"))

    assert len(run_key(desk, keys.List()).signers) == 1


def test_lines_that_people_have_written_stay_as_they_are(signed: Desk) -> None:
    path = signed.path / "keys" / "allowed_signers"
    mine = f"# colleagues\n\n*@example.com   {new_key().public.line} by hand\n"
    path.write_text(path.read_text() + mine)

    run_key(signed, keys.Rotate())
    trust(signed, new_key())

    assert mine in path.read_text()
    shown = run_key(signed, keys.List())
    assert [one.principals for one in shown.signers] == ["store", "*@example.com", "store", "me"]


@pytest.mark.parametrize("name", ["allowed_signers", "revoked_keys"])
@pytest.mark.parametrize(
    "payload", [b"nonsense\n", b"\xff" * 99, b"#" * (2 << 20)], ids=["text", "binary", "huge"]
)
def test_a_broken_file_trusts_nobody_and_is_told(signed: Desk, name: str, payload: bytes) -> None:
    (signed.path / "keys" / name).write_bytes(payload)

    with pytest.raises(SignersFileError, match=name):
        run_key(signed, keys.List())
    with pytest.raises(SignersFileError):
        signed.run("seal", agent="bot")
    assert "E179" in findings(signed, "1.0.0").errors[0].text
    assert not findings(signed, "1.0.0").has_damage
    assert signed.run("show", reference="bot", has_signature=True).signature.status == "unknown"


@pytest.mark.parametrize("at", range(3))
def test_a_rotation_that_dies_at_any_write_is_there_whole_or_not_at_all(
    signed: Desk, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is the write of the trusted signers; the rest is finished or taken back."""
    writes = 0
    before = run_key(signed, keys.List())
    real_write, real_rename = write_durably, os.rename

    def dying(*arguments: Any, **options: Any) -> None:
        nonlocal writes
        if writes == at:
            raise OSError(28, "No space left on device")
        writes += 1
        real_write(*arguments, **options)

    def dying_rename(source: Any, target: Any, **options: Any) -> None:
        if at == 2 and str(target).endswith("/signing_key"):
            raise OSError(5, "Input/output error")
        real_rename(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(keyring, "write_durably", dying)
        patch.setattr(os, "rename", dying_rename)
        with pytest.raises(KaifsError):
            run_key(signed, keys.Rotate())

    after = run_key(signed, keys.List())
    assert not (signed.path / "keys" / "signing_key.next").exists()
    if at < 2:
        assert (after.store_key, after.signers) == (before.store_key, before.signers)
    else:
        assert after.store_key != before.store_key
        assert [one.is_store_key for one in after.signers] == [False, True]
    signed.run("seal", agent="bot")
    assert status_of(signed, "1.0.1") == "good"


# --- what a policy requires ---------------------------------------------------------------------------


def test_a_policy_that_requires_signatures_is_kept(signed: Desk) -> None:
    assert not signed.run("policy", agent="bot").require_signature
    require(signed)
    signed.store.commit()
    signed.reopen()
    assert signed.run("policy", agent="bot").require_signature
    require(signed, required=False)
    assert signed.store.get_agent("bot").policy == b""


def test_without_a_key_that_signs_nothing_is_made(
    desk: Desk, project: Path, tmp_path: Path
) -> None:
    desk.take("bot", "1.0.0", project)
    committable(desk, tmp_path)
    require(desk)
    mine = new_key()
    sign_it_trusted(desk, mine)
    before = desk.state()

    with pytest.raises(UnsignedError, match="bot"):
        desk.run("seal", agent="bot")
    with pytest.raises(UnsignedError, match="bot"):
        desk.take("bot", "2.0.0", project)
    with pytest.raises(UnsignedError, match="bot"):
        desk.run("commit", reference="snap")
    assert desk.state() == before
    desk.run("seal", agent="bot", caller_signs=True, signer=signer_with(mine))
    with pytest.raises(UntrustedKeyError, match="unknown"):
        desk.run("seal", agent="bot", caller_signs=True, signer=signer_with(new_key()))


def sign_it_trusted(desk: Desk, key: PrivateKey) -> None:
    trust(desk, key)
    sign_it(desk, "1.0.0", signer_with(key))


def test_a_store_key_that_is_not_trusted_does_not_satisfy_a_policy(signed: Desk) -> None:
    require(signed)
    (signed.path / "keys" / "allowed_signers").write_text("")

    with pytest.raises(UntrustedKeyError, match="store's own key"):
        signed.run("seal", agent="bot")


def unsigned(desk: Desk) -> None:
    forge(desk, "1.0.0", signature=b"")


def badly_signed(desk: Desk) -> None:
    signature = version_of(desk, "1.0.0").signature
    forge(desk, "1.0.0", signature=signature[:100] + b"AAAA" + signature[104:])


def of_a_changed_record(desk: Desk) -> None:
    record = version_of(desk, "1.0.0").record
    forge(desk, "1.0.0", record=record.replace(b'"author":"system"', b'"author":"mallet"'))


def untrusted(desk: Desk) -> None:
    desk.run("policy", agent="bot", require_signature=False)
    sign_it(desk, "1.0.0", signer_with(new_key()))
    desk.run("policy", agent="bot", require_signature=True)


CASES: list[tuple[Callable[[Desk], None], type[KaifsError], bool, bool]] = [
    (unsigned, UnsignedError, False, False),
    (badly_signed, BadSignatureError, True, True),
    (of_a_changed_record, BadSignatureError, True, True),
    (untrusted, UntrustedKeyError, False, False),
]


@pytest.mark.parametrize(
    ("spoil", "refusal", "is_damage", "is_always_refused"),
    CASES,
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_version_that_is_not_signed_as_required_is_not_used(
    signed: Desk,
    tmp_path: Path,
    spoil: Callable[[Desk], None],
    refusal: type[KaifsError],
    *,
    is_damage: bool,
    is_always_refused: bool,
) -> None:
    committable(signed, tmp_path)
    signed.write("bot", b"a.txt", b"two\n")
    signed.run("seal", agent="bot")
    require(signed)
    spoil(signed)
    before = signed.state()

    with pytest.raises(RollbackValidationError, match=refusal.code):
        signed.run("rollback", agent="bot", version="1.0.0")
    uses: list[tuple[str, dict[str, Any]]] = [
        ("snapshot", {"reference": "bot@1.0.0"}),
        ("seal", {"agent": "bot", "source": "bot@1.0.0"}),
        ("commit", {"reference": "snap"}),
    ]
    for verb, params in uses:
        with pytest.raises(refusal, match=r"bot@1\.0\.0"):
            signed.run(verb, **params)
    assert signed.state() == before
    assert findings(signed, "1.0.0").has_damage is is_damage
    assert not findings(signed, "1.0.0").is_valid

    require(signed, required=False)
    if is_always_refused:
        with pytest.raises(RollbackValidationError, match=refusal.code):
            signed.run("rollback", agent="bot", version="1.0.0")
    else:
        signed.run("rollback", agent="bot", version="1.0.0")
    assert [one.text for one in findings(signed, "1.0.0").warnings] == (
        ["no signature, though the store has a key"] if spoil is unsigned else []
    )


def test_a_backup_is_made_whatever_the_policy_requires(desk: Desk, project: Path) -> None:
    desk.take("bot", "1.0.0", project)
    require(desk)
    sign_it_trusted(desk, new_key())
    desk.write("bot", b"a.txt", b"uncommitted\n")

    desk.run("rollback", agent="bot", version="1.0.0")

    assert not findings(desk, "1.0.1-rollback.1").is_valid


# --- who may -------------------------------------------------------------------------------------------------


def test_only_the_stores_owner_changes_keys(signed: Desk) -> None:
    key = new_key().public.line
    before = sorted(path.read_bytes() for path in (signed.path / "keys").iterdir())

    for action in (
        keys.Generate(),
        keys.Trust(key=key, principals="me"),
        keys.Revoke(key),
        keys.Rotate(),
    ):
        with pytest.raises(AccessDeniedError):
            run_key(signed, action, caller=STRANGER)

    assert run_key(signed, keys.List(), caller=STRANGER).store_key is not None
    assert sorted(path.read_bytes() for path in (signed.path / "keys").iterdir()) == before


def test_signing_and_policy_are_the_agents_owners(signed: Desk) -> None:
    agent = signed.store.get_agent("bot")
    signed.store.put_agent(replaced(agent, uid=STRANGER.uid, gid=STRANGER.gid))
    somebody = Caller(77777, 77777)

    for verb, params in (
        ("sign", {"reference": "bot@1.0.0"}),
        ("sign", {"reference": "bot@1.0.0", "caller_signs": True}),
        ("policy", {"agent": "bot", "require_signature": True}),
    ):
        with pytest.raises(AccessDeniedError):
            signed.run(verb, caller=somebody, **params)
        signed.run(verb, caller=STRANGER, **params)

    assert signed.run("policy", agent="bot", caller=somebody).require_signature
    assert public_of_private((signed.path / "keys" / "signing_key").read_bytes()) is not None
    assert replace(signed.context, caller=STRANGER).owns_store() is (os.getuid() == STRANGER.uid)


def test_answers_are_of_their_own_kind() -> None:
    """What travels as an item must not be taken for another."""
    encoded = msgspec.msgpack.encode(Signature(b"x"))

    assert msgspec.msgpack.decode(encoded)[0] == "signature"
