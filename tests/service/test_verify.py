"""What verify finds, how it names it, and what it need not read again."""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from kaifs.base.canonical import canonical_json
from kaifs.base.errors import (
    AccessDeniedError,
    BadLabelError,
    InvalidVersionError,
    KaifsError,
    RollbackValidationError,
    SnapshotNotFoundError,
)
from kaifs.base.types import TOP_INO
from kaifs.meta import keys as tree_keys
from kaifs.meta.database import Table
from kaifs.meta.records import InodeRecord, decode_dentry, encode_dentry
from kaifs.service import key as keys
from kaifs.service.reproduction import check_reproduction
from kaifs.store.payload import block_key
from kaifs.tree.integrity import segment_state, settling_ns
from kaifs.tree.tree import AttributeChange
from tests.service.desk import OWNER, STRANGER, Desk
from tests.service.injury import Injured, flip_content
from tests.service.lab import Lab, suite

pytestmark = pytest.mark.logs_errors
"""What is damaged is logged as an error."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "lib").mkdir(parents=True)
    for name in ("a.py", "b.py", "c.py"):
        (folder / "lib" / name).write_bytes(os.urandom(3000))
    (folder / "big").write_bytes(os.urandom(3_000_000))
    (folder / "small").write_text("tiny\n")
    (folder / "link").symlink_to("lib/somewhere/far")
    return folder


@pytest.fixture
def hurt(tmp_path: Path, project: Path) -> Iterator[Injured]:
    """`bot@1.0.0`, and 1.1.0 in which lib/c.py is another."""
    desk = Desk(tmp_path / "store")
    desk.take("bot", "1.0.0", project)
    (project / "lib" / "c.py").write_bytes(os.urandom(3000))
    desk.take("bot", "1.1.0", project)
    hurt = Injured(desk)
    yield hurt
    hurt.close()


def test_sound_versions_are_valid_with_nothing_to_say(hurt: Injured) -> None:
    found = hurt.verify()

    assert list(found) == ["bot@1.0.0", "bot@1.1.0"]
    assert all((one.valid, one.errors, one.warnings) == (True, (), ()) for one in found.values())
    assert hurt.alerts == []


def test_content_that_versions_share_is_read_once(hurt: Injured) -> None:
    """Also by versions that share no node: what counts is the blocks."""
    result = hurt.result()

    assert 3_012_000 <= result.read_bytes < 3_013_000


# --- damage: found, named, set aside, told ---------------------------------------------------


def test_a_flipped_byte_of_one_file_is_named_and_its_version_set_aside(hurt: Injured) -> None:
    hurt.flip_content("1.1.0", b"lib/c.py", 1234)

    found = hurt.verify()

    assert found["bot@1.0.0"].valid
    (error,) = found["bot@1.1.0"].errors
    assert error.startswith("checksum: lib/c.py: block in segment")
    assert error.endswith("is damaged (E102)")
    assert found["bot@1.1.0"].quarantined
    assert hurt.labels() == ["1.0.0"]
    (alert,) = hurt.alerts
    assert (alert.event, alert.subject, alert.errors) == ("quarantined", "bot@1.1.0", (error,))


def test_every_version_that_has_a_damaged_file_is_named_and_no_other(hurt: Injured) -> None:
    hurt.flip_content("1.0.0", b"big", 77)

    found = hurt.verify()

    assert [one.valid for one in found.values()] == [False, False]
    assert all(len(one.errors) == 1 and ": big: " in one.errors[0] for one in found.values())


def test_a_forged_mode_is_named_by_the_copy_of_the_index_that_was_not_forged(hurt: Injured) -> None:
    def widen(inode: InodeRecord) -> InodeRecord:
        return replace(inode, mode=inode.mode | 0o022)

    hurt.forge_inode("1.1.0", b"lib/c.py", widen, both=False)

    found = hurt.verify()

    assert found["bot@1.0.0"].valid
    (error,) = found["bot@1.1.0"].errors
    assert (
        error
        == "checksum: its manifest does not have the hash that its record says: lib/c.py (E102)"
    )


def test_a_forged_target_is_found_and_named_by_what_differs_from_a_sound_version(
    hurt: Injured,
) -> None:
    hurt.desk.run("seal", agent="bot", label="1.2.0")
    hurt.desk.current("bot").unlink(TOP_INO, b"link", hurt.desk.clock.now_ns())
    hurt.desk.current("bot").symlink(TOP_INO, b"link", b"target", 0, 0, hurt.desk.clock.now_ns())
    hurt.desk.run("seal", agent="bot", label="1.3.0")
    hurt.forge_target("1.3.0", b"link", b"/etc/x")

    found = hurt.verify()

    assert not found["bot@1.3.0"].valid
    assert found["bot@1.2.0"].valid
    (error,) = found["bot@1.3.0"].errors
    assert "its manifest does not have the hash" in error
    assert "link" in error


def test_a_forged_owner_is_found_by_the_tree_digest(hurt: Injured) -> None:
    hurt.forge_inode("1.1.0", b"lib/c.py", lambda inode: replace(inode, uid=4321), both=False)

    (error,) = hurt.verify()["bot@1.1.0"].errors

    assert error.startswith("checksum: owners, times, attributes or links are not")
    assert error.endswith(": lib/c.py (E102)")


def test_a_flipped_byte_of_a_target_in_both_copies_is_named(hurt: Injured) -> None:
    """The node cannot be read any more, so everything that was in it is told."""
    hurt.flip_in_index(b"lib/somewhere/far")

    found = hurt.verify()

    assert not any(one.valid for one in found.values())
    assert hurt.labels() == []
    assert all(one.errors and "E102" in one.errors[0] for one in found.values())


def test_a_flipped_byte_in_one_copy_of_the_index_is_healed(hurt: Injured) -> None:
    hurt.flip_in_index(b"lib/somewhere/far", both=False)

    found = hurt.verify()

    assert all(one.valid for one in found.values())


def test_an_unreadable_record_is_named_and_everything_else_works(hurt: Injured) -> None:
    hurt.flip_in_index(hurt.version("1.0.0").record[:40])

    listed = hurt.desk.run("list", agent="bot")
    found = hurt.verify()

    assert [one.version for one in listed.versions] + list(listed.damaged) == ["1.1.0", "1.0.0"]
    assert found["bot@1.1.0"].valid
    assert found["bot@1.0.0"].errors == ("checksum: its record is unreadable (E102)",)
    assert hurt.labels() == ["1.1.0"]
    assert [one.version for one in hurt.desk.run("quarantine-list").versions] == ["1.0.0"]


def test_a_forged_record_is_found_by_its_children(hurt: Injured) -> None:
    version = hurt.version("1.0.0")
    hurt.forge_version("1.0.0", record=edited(version.record, notes="somebody else's"))

    found = hurt.verify()

    assert found["bot@1.0.0"].errors == (
        "lineage: its record is not the one that 1.1.0 came from (E102)",
    )
    assert found["bot@1.1.0"].errors == (
        "lineage: the record of its parent 1.0.0 is another by now",
    )
    assert hurt.labels() == ["1.1.0"]


def test_a_forged_record_without_children_is_found_by_what_verified(hurt: Injured) -> None:
    hurt.verify()
    hurt.forge_version("1.1.0", record=edited(hurt.version("1.1.0").record, notes="forged"))

    (error,) = hurt.verify()["bot@1.1.0"].errors

    assert error == (
        "checksum: its record is not what it was when the version last verified (E102)"
    )


def test_a_record_that_another_was_put_over_is_no_record_of_its_version(hurt: Injured) -> None:
    hurt.forge_version("1.1.0", record=hurt.version("1.0.0").record)

    errors = hurt.verify()["bot@1.1.0"].errors

    assert "checksum: its record says version '1.0.0', the store '1.1.0' (E102)" in errors


@pytest.mark.parametrize(
    "record",
    [b"", b"{", b"[" * 100_000, b'{"version": "1.1.0"}', b"\xff\xfe"],
    ids=["empty", "cut", "deep", "incomplete", "no UTF-8"],
)
def test_a_hostile_record_is_damage_and_no_crash(hurt: Injured, record: bytes) -> None:
    hurt.forge_version("1.1.0", record=record)

    found = hurt.verify()

    assert found["bot@1.0.0"].valid
    assert found["bot@1.1.0"].quarantined
    assert all(error.isprintable() for error in found["bot@1.1.0"].errors)


def test_a_flipped_signature_is_damage(desk: Desk, project: Path) -> None:
    desk.run("key", action=keys.Generate())
    desk.take("bot", "1.0.0", project)
    hurt = Injured(desk)
    signature = hurt.version("1.0.0").signature
    place = len(signature) // 2
    flipped = signature[:place] + bytes([signature[place] ^ 1]) + signature[place + 1 :]
    hurt.forge_version("1.0.0", signature=flipped)

    found = hurt.verify()["bot@1.0.0"]

    assert found.errors[0].startswith("signature: ")
    assert found.quarantined


def test_a_signed_parent_is_believed_and_the_child_that_disagrees_is_not(
    desk: Desk, project: Path
) -> None:
    desk.run("key", action=keys.Generate())
    desk.take("bot", "1.0.0", project)
    desk.take("bot", "1.1.0", project)
    hurt = Injured(desk)
    record = msgspec.json.decode(hurt.version("1.1.0").record)
    record["parentHash"] = "0" * 64
    hurt.forge_version("1.1.0", record=canonical_json(record), signature=b"")

    found = hurt.verify()

    assert found["bot@1.0.0"].valid
    assert found["bot@1.1.0"].quarantined


def test_a_loop_of_directories_is_told_and_not_walked_for_ever(hurt: Injured) -> None:
    tree = hurt.desk.forest.tree(hurt.version("1.1.0").root)
    hurt.is_index_hurt = True
    key = tree_keys.dentry_key(TOP_INO, b"lib")
    _, seq, kind = decode_dentry(tree.btree.get(key) or b"")
    hurt.forge_key("1.1.0", key, lambda value: encode_dentry(TOP_INO, seq, kind))

    errors = hurt.verify()["bot@1.1.0"].errors

    assert errors == ("checksum: .: directories in it are elsewhere too: lib (E102)",)


def test_a_missing_block_names_the_file(hurt: Injured) -> None:
    tree = hurt.desk.forest.tree(hurt.version("1.1.0").root)
    block = tree.content.extents(tree.resolve(b"lib/c.py"))[0].block
    record = hurt.desk.store.database.get(Table.BLOCKS, block_key(block))
    assert record is not None
    hurt.desk.store.database.write({Table.BLOCKS: {block_key(block): None}})
    hurt.forget()

    (error,) = hurt.verify()["bot@1.1.0"].errors

    assert error == f"checksum: lib/c.py: block {block} is missing (E102)"
    # So that what the test ends with is whole again.
    hurt.desk.store.database.write({Table.BLOCKS: {block_key(block): record}})


# --- what is remembered ------------------------------------------------------------------------


def test_what_verified_and_cannot_have_changed_is_not_read_again(hurt: Injured) -> None:
    hurt.verify()

    again = hurt.result()

    assert again.read_bytes == 0
    assert all(one.is_skipped and one.valid for one in again.validations)


def test_full_reads_everything_again(hurt: Injured) -> None:
    first = hurt.result()

    again = hurt.result(full=True)

    assert again.read_bytes == first.read_bytes
    assert not any(one.is_skipped for one in again.validations)


def test_a_segment_that_somebody_wrote_to_is_read_again(hurt: Injured) -> None:
    hurt.verify()
    hurt.flip_content("1.1.0", b"lib/c.py")

    found = hurt.verify()

    assert not found["bot@1.1.0"].valid
    assert not found["bot@1.0.0"].is_skipped


def test_a_forged_node_is_found_whatever_was_remembered(hurt: Injured) -> None:
    hurt.verify()
    hurt.forge_inode("1.1.0", b"lib/c.py", lambda inode: replace(inode, mode=inode.mode ^ 1))

    found = hurt.verify()

    assert found["bot@1.0.0"].is_skipped
    assert not found["bot@1.1.0"].valid


def test_what_is_remembered_survives_a_restart_and_goes_with_its_version(hurt: Injured) -> None:
    hurt.verify()
    root = hurt.version("1.0.0").root
    hurt.desk.reopen()

    assert hurt.result().read_bytes == 0
    hurt.desk.run("rollback", agent="bot", version="1.1.0")
    hurt.desk.run("remove", reference="bot@1.0.0", force=True)
    hurt.desk.reopen()

    assert hurt.desk.store.find_verified(root) is None


def test_warnings_are_told_again_though_nothing_is_read(hurt: Injured, project: Path) -> None:
    (project / "small").chmod(0o666)
    hurt.desk.take("bot", "1.2.0", project)

    first = hurt.verify("bot@1.2.0")
    again = hurt.verify("bot@1.2.0")

    assert first["bot@1.2.0"].warnings == ("permission: small: everybody may write to it",)
    assert again["bot@1.2.0"].is_skipped
    assert again["bot@1.2.0"].warnings == first["bot@1.2.0"].warnings


# --- permissions, lineage, evidence ---------------------------------------------------------


def test_permissions_that_let_others_in_are_told(hurt: Injured, project: Path) -> None:
    (project / "lib" / "a.py").chmod(0o4755)
    (project / "lib").chmod(0o777)
    hurt.desk.take("bot", "1.2.0", project)

    found = hurt.verify("bot@1.2.0")["bot@1.2.0"]

    assert found.valid
    assert found.warnings == (
        "permission: lib: everybody may write to it",
        "permission: lib/a.py: it runs with the rights of its owner or group",
    )


def test_a_set_id_file_of_somebody_else_is_an_error_and_no_damage(hurt: Injured) -> None:
    tree = hurt.desk.current("bot")
    ino = hurt.desk.write("bot", b"tool", b"x")
    tree.set_attributes(ino, AttributeChange(uid=OWNER.uid + 1), hurt.desk.clock.now_ns())
    tree.set_attributes(ino, AttributeChange(mode=0o4755), hurt.desk.clock.now_ns())
    hurt.desk.run("seal", agent="bot", label="1.2.0")

    found = hurt.verify("bot@1.2.0")["bot@1.2.0"]

    assert found.errors == (
        "permission: tool: it runs with the rights of a user who is not the agent's owner",
    )
    assert not found.quarantined


def test_a_parent_that_was_removed_is_a_warning(hurt: Injured) -> None:
    hurt.desk.run("rollback", agent="bot", version="1.1.0")
    hurt.desk.run("remove", reference="bot@1.0.0", force=True)

    found = hurt.verify()["bot@1.1.0"]

    assert found.valid
    assert found.warnings == ("lineage: its parent 1.0.0 is not there any more",)


def test_a_label_that_was_given_anew_is_no_damage(hurt: Injured, project: Path) -> None:
    hurt.desk.run("rollback", agent="bot", version="1.1.0")
    hurt.desk.run("remove", reference="bot@1.0.0", force=True)
    hurt.desk.take("bot", "1.0.0", project)

    found = hurt.verify()

    assert found["bot@1.0.0"].valid
    assert found["bot@1.1.0"].warnings == (
        "lineage: its parent 1.0.0 is not there any more: another version has the label",
    )


def test_versions_that_descend_from_each_other_are_damaged(hurt: Injured) -> None:
    for label, parent in (("1.0.0", "1.1.0"), ("1.1.0", "1.0.0")):
        record = msgspec.json.decode(hurt.version(label).record)
        record |= {"parent": parent, "parentHash": "0" * 64}
        hurt.forge_version(label, record=canonical_json(record))

    found = hurt.verify()

    assert all("it descends from itself (E102)" in " ".join(one.errors) for one in found.values())


def test_evidence_that_cannot_be_is_damage(hurt: Injured, tmp_path: Path) -> None:
    hurt.desk.run("snapshot", reference="bot", name="s")
    Lab(hurt.desk, tmp_path).test("bot/@snapshots/s", suite=suite("true"))
    hurt.desk.run("commit", reference="bot/@snapshots/s", label="2.0.0")
    assert hurt.verify("bot@2.0.0")["bot@2.0.0"].valid
    record = msgspec.json.decode(hurt.version("2.0.0").record)
    record["metadata"]["evidence"]["passedTests"] = 7
    hurt.forge_version("2.0.0", record=canonical_json(record))

    errors = hurt.verify("bot@2.0.0")["bot@2.0.0"].errors

    assert "checksum: evidence in its record: 7 of 1 tests passed (E102)" in errors


# --- reproduction -----------------------------------------------------------------------------


def test_a_version_sealed_again_from_its_files_is_the_same(desk: Desk, folder: Path) -> None:
    """With every kind of file there is, and without a trace in the store."""
    desk.take("bot", "1.0.0", folder)
    desk.store.commit()
    before = desk.store.root_ids()

    found = Injured(desk).verify("bot@1.0.0", reproduce=True)

    assert found["bot@1.0.0"].valid
    assert desk.store.root_ids() == before


def test_what_cannot_be_reproduced_is_told(hurt: Injured) -> None:
    version = hurt.version("1.1.0")
    record = msgspec.json.decode(version.record)
    record["treeDigest"] = "0" * 64

    steps = check_reproduction(hurt.desk.context, replace(version, record=canonical_json(record)))
    found: Any = None
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        found = stop.value

    (error,) = found.errors
    assert error.check == "reproduction"
    assert error.text.startswith("sealed again its treeDigest is ")


# --- references and rights --------------------------------------------------------------------


def test_blocks_of_current_and_of_snapshots_are_read(hurt: Injured) -> None:
    hurt.desk.write("bot", b"new", os.urandom(5000))
    hurt.desk.run("snapshot", reference="bot", name="s")

    found = hurt.verify("bot", "bot/@snapshots/s")

    assert [one.valid for one in found.values()] == [True, True]


def test_a_damaged_block_of_current_is_named_and_told(hurt: Injured) -> None:
    hurt.desk.write("bot", b"new", os.urandom(5000))
    flip_content(hurt.desk, hurt.desk.current("bot"), b"new")

    found = hurt.verify("bot")["bot"]

    assert not found.valid
    assert found.errors[0].startswith("checksum: new: block in segment")
    assert [(alert.event, alert.subject) for alert in hurt.alerts] == [("damaged", "bot")]


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("bot@9.9.9", InvalidVersionError),
        ("bot@x", BadLabelError),
        ("bot/@snapshots/none", SnapshotNotFoundError),
        ("@1.0.0", KaifsError),
        ("", KaifsError),
        ("bot@", BadLabelError),
    ],
)
def test_bad_references_are_refused(hurt: Injured, reference: str, error: type[KaifsError]) -> None:
    with pytest.raises(error):
        hurt.verify(reference)


def test_what_a_caller_may_not_read_is_not_verified_for_them(hurt: Injured, project: Path) -> None:
    (project / "small").chmod(0o600)
    hurt.desk.take("bot", "1.2.0", project)
    hurt.desk.store.commit()

    found = hurt.desk.run("verify", caller=STRANGER)

    assert [one.reference for one in found.validations] == ["bot@1.0.0", "bot@1.1.0"]
    with pytest.raises(AccessDeniedError):
        hurt.desk.run("verify", caller=STRANGER, references=("bot@1.2.0",))


# --- rollback ---------------------------------------------------------------------------------


def test_a_record_that_is_not_what_verified_cannot_be_rolled_back_to(hurt: Injured) -> None:
    hurt.verify()
    hurt.forge_version("1.0.0", record=edited(hurt.version("1.0.0").record, notes="forged"))
    before = hurt.desk.store.get_agent("bot")

    with pytest.raises(RollbackValidationError):
        hurt.desk.run("rollback", agent="bot", version="1.0.0")

    assert hurt.desk.store.get_agent("bot").head == before.head


def test_where_signatures_are_required_a_forged_tree_cannot_be_rolled_back_to(
    desk: Desk, project: Path
) -> None:
    """The signature covers the record, and the record the tree: both are proved before a switch."""
    desk.run("key", action=keys.Generate())
    desk.take("bot", "1.0.0", project)
    desk.take("bot", "1.1.0", project)
    desk.run("policy", agent="bot", require_signature=True)
    hurt = Injured(desk)
    desk.run("rollback", agent="bot", version="1.0.0")
    hurt.forge_inode(
        "1.1.0", b"lib/a.py", lambda inode: replace(inode, mode=inode.mode | stat.S_ISUID)
    )
    before = desk.store.get_agent("bot")

    with pytest.raises(RollbackValidationError):
        desk.run("rollback", agent="bot", version="1.1.0")

    assert desk.store.get_agent("bot").head == before.head


def edited(record: bytes, **metadata: str) -> bytes:
    """Return a record with other metadata, as canonical as before."""
    plain = msgspec.json.decode(record)
    plain["metadata"] |= metadata
    return canonical_json(plain)


def test_a_segment_counts_when_it_has_settled_at_whatever_moment_that_is(hurt: Injured) -> None:
    """The clock by which files are stamped goes in steps of milliseconds; a wait does not end on one."""
    store = hurt.desk.store
    segment = max(store.segments.sizes)

    for number in range(30):
        hurt.desk.write("bot", b"own", b"%d" % number * 4000)
        time.sleep(settling_ns(store) / 1e9)

        assert settling_ns(store) == 0
        assert segment_state(store, segment) is not None
