"""Records: the values of the LMDB tables and of tree keys, and how they are encoded.

A record is a msgpack array of its fields in order (msgspec, array-like), so a
reader needs no code of ours. Unknown extra fields are refused: a store that
has them says so in its feature sets first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Generic, TypeVar

import msgspec

from kaifs.base.digest import RECORD_CHECKSUM_SIZE, record_checksum
from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import BlockId, Generation, Ino, NodeId, RootId, SegmentId, Slot


class RootState(IntEnum):
    """What may happen to the tree of a root."""

    WRITABLE = 0
    SEALED = 1
    SUPERSEDED = 2
    """Was a head; stays readable while the kernel knows inodes of it."""
    BUILDING = 3
    """Not yet shown anywhere; dropped when the store is opened again."""


class RootKind(IntEnum):
    """Which directory of the mount shows the tree of a root."""

    HEAD = 0
    VERSION = 1
    SNAPSHOT = 2
    NONE = 3
    QUARANTINED = 4
    """Was a version's: nobody reads it any more until it is released."""


class RootRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One root: names one whole tree. Key in ROOTS: `root_id`, 8 bytes big-endian."""

    root_id: RootId
    top: NodeId
    """The B+tree's top node."""
    generation: Generation
    """Nodes of this generation are this root's own and changed in place."""
    next_ino: Ino
    """Next inode number; greater than every one in the tree."""
    state: RootState
    kind: RootKind
    agent_id: int
    name: str
    """Label of a version, name of a snapshot, else empty."""
    slot: Slot
    lineage: RootId
    """The root that this one descends from by clones; its own id for the first."""
    inodes: int
    """Number of inodes, the top directory and orphans included."""
    size: int
    """Sum of the sizes of all regular files, bytes."""
    own: int
    """Bytes that changes of this tree take beside what it was cloned from: an estimate."""
    first_ino: Ino
    """Inode numbers from here on were given since the clone."""
    first_block: BlockId
    """Blocks from here on were written since the clone."""


class AgentRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One agent. Key in AGENTS: its name."""

    agent_id: int
    name: str
    head: RootId
    version: str
    """Label of the version that current is based on; empty if none."""
    uid: int
    gid: int
    mode: int
    """Permission bits of the agent's folder."""
    created_ns: int
    changed_ns: int
    """When a version or a snapshot was last added, removed or renamed."""
    backup: str = ""
    """Label under which `superseded` is still to be sealed; empty if nothing is due."""
    superseded: RootId = RootId(0)
    """The head before the last rollback, while its backup is due."""
    backup_base: str = ""
    """Label that `superseded` was based on; empty if none."""
    policy: bytes = b""
    """What its owner demands of its versions, as JSON; empty: the defaults."""


class VersionRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One version. Key in VERSIONS: agent id (8 bytes big-endian), label."""

    agent_id: int
    label: str
    root: RootId
    record: bytes
    """The specification's AgentVersion as canonical JSON."""
    hash: str
    """SHA-256 of the canonical manifest, lower-case hex."""
    created_ns: int
    size: int
    """Sum of the sizes of its regular files, bytes."""
    inodes: int
    signature: bytes = b""
    """Of `record`: armored SSHSIG, namespace `kaifs-record`; empty: it is not signed."""
    signatures: int = 0
    """How many it has had, this one included."""
    signed_ns: int = 0
    """When it got this one; 0 if it has none."""


class QuarantineRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One version that was set aside. Key in QUARANTINE: agent id (8 bytes big-endian), label."""

    agent_id: int
    label: str
    root: RootId
    """The version's tree; 0 if it could not be found."""
    version: bytes
    """The encoded `VersionRecord`; empty if it was unreadable."""
    reason: str
    quarantined_ns: int
    path: str
    """Where the version was: `AGENT/@versions/LABEL`."""
    found: tuple[str, ...]
    """What was wrong with it, a line each; empty if a user set it aside unseen."""


class SegmentState(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What tells whether somebody has written to a segment's file since."""

    segment: SegmentId
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int


class VerifiedRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a version was when it last verified. Key in VERIFIED: its root id, 8 bytes big-endian."""

    verified_ns: int
    record: bytes
    """SHA-256 of its record."""
    nodes: bytes
    """Fingerprint of the nodes of its tree."""
    segments: tuple[SegmentState, ...]
    """Of every segment that holds a block of it, by segment."""
    notes: tuple[tuple[int, int], ...] = ()
    """Inode numbers of what was not as it should be, and how, as `verify` counts it."""


class SnapshotRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One snapshot. Key in SNAPSHOTS: agent id (8 bytes big-endian), name."""

    agent_id: int
    name: str
    root: RootId
    base: RootId
    """The root that it was cloned from (a version's, or a frozen clone of current)."""
    version: str
    """Label of the version that it is based on; empty if none."""
    status: str
    read_only: bool
    uid: int
    gid: int
    created_ns: int
    isolation: bytes = b""
    """What was asked for commands that run in it, as JSON; empty: nothing was."""
    tested: RootId = RootId(0)
    """Its tree as the last tests left it, a clone; 0 if there is no result."""
    evidence: bytes = b""
    """What the last tests were and came to, as JSON; empty if there is no result."""
    committed: str = ""
    """Label of the version that it has become: it is about to go. Empty before."""


class OutputRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What the last tests in a snapshot wrote. Key in OUTPUTS: the snapshot's root id."""

    codec: int
    """0: stored as it is; 1: zstd."""
    size: int
    """Bytes of output kept."""
    stored: bytes


class InodeRecord(
    msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False
):
    """One file-system object without its names. Times are ns since 1970, may be negative."""

    mode: int
    """File type and permission bits, as st_mode."""
    uid: int
    gid: int
    nlink: int
    """Names; a directory counts 2 and one for each subdirectory; 0 is an orphan."""
    size: int
    """Bytes; for a directory the number of its entries."""
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    """When it was made; never changes."""
    allocated: int
    """Bytes covered by extents."""
    next_seq: int
    """Directories: the next entry's position; grows, never reused."""
    sha256: bytes
    """Of a regular file's bytes, 32 bytes; empty if it changed since it was last known."""


class BlockRecord(
    msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False
):
    """Where one block is. Key in BLOCKS: block id, 8 bytes big-endian."""

    segment: SegmentId
    offset: int
    """Position of the block's record header in the segment, bytes."""
    stored_size: int
    """Bytes in the segment after the header; smaller than `size` if compressed."""
    size: int
    """Bytes of payload."""
    codec: int
    """0: stored as it is; 1: zstd."""
    checksum: bytes
    """xxh3-128 of the payload."""


class SegmentRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One segment. Key in SEGMENTS: segment id, 8 bytes big-endian."""

    size: int
    """Committed bytes; what lies beyond was never named by a commit."""
    live: int
    """Bytes of records whose block is in BLOCKS."""


class Answer(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """The reply to a request of the kernel that changed something.

    Who was killed between the change and the reply has done what the kernel asks for again.
    """

    connection: int
    """Which connection the request came by: a random number."""
    unique: int
    """Which request it was, as the kernel numbers those of a connection."""
    reply: bytes
    """What follows the header of the reply."""


class ScrubTally(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a scrub has read, healed and found so far."""

    read: int = 0
    """Bytes of segments."""
    healed: int = 0
    """Blocks, and records of the index."""
    damaged: int = 0
    """Blocks, and records of the index, that no copy can heal."""


class ScrubRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """When the store was scrubbed, and how far it is. Key in META: `scrub`."""

    finished_ns: int = 0
    """When the last scrub ended; 0: never."""
    last: ScrubTally = ScrubTally()
    """What that found."""
    started_ns: int = 0
    """When the scrub began that is under way, also if nobody goes on with it now; 0: none is."""
    segment: SegmentId = SegmentId(0)
    """Segments before this one have been read by it; 0: nor has all of the index."""
    so_far: ScrubTally = ScrubTally()


class CounterRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Identity, and the next id of each kind. Key in META: `counters`."""

    uuid: bytes
    epoch: int
    """Number of this commit."""
    generation: int
    node: int
    block: int
    root: int
    segment: int
    slot: int
    agent: int
    journal: int
    """Number of the first journal record after this commit."""
    answer: Answer | None = None
    """The last one before this commit."""


@dataclass(frozen=True, slots=True)
class Extent:
    """One run of file bytes held by one block, or inline. All sizes are bytes."""

    offset: int
    """Position in the file of the first byte."""
    length: int
    """Number of bytes; at least 1."""
    block: BlockId
    """0 if the bytes are inline."""
    block_offset: int = 0
    """Position in the block's payload of the first byte."""
    inline: bytes = b""
    """The bytes themselves, if `block` is 0."""

    @property
    def stop(self) -> int:
        """File position just past the last byte."""
        return self.offset + self.length

    def cut(self, start: int, stop: int) -> Extent:
        """Return the part that covers file bytes [start, stop), which must lie inside."""
        skip = start - self.offset
        length = stop - start
        if self.block:
            return Extent(start, length, self.block, self.block_offset + skip)
        return Extent(start, length, self.block, 0, self.inline[skip : skip + length])


_BLOCK_EXTENT: Final = struct.Struct("<BQII")
_INLINE_TAG: Final = b"\x00"


def encode_extent(extent: Extent) -> bytes:
    """Return the value of an EXTENT key: tag 0 and the bytes, or tag 1, block, offset, length."""
    if extent.block:
        return _BLOCK_EXTENT.pack(1, extent.block, extent.block_offset, extent.length)
    return _INLINE_TAG + extent.inline


def decode_extent(offset: int, value: bytes) -> Extent:
    """Return the extent at file position *offset* that *value* holds."""
    if value[0]:
        _, block, block_offset, length = _BLOCK_EXTENT.unpack(value)
        return Extent(offset, length, BlockId(block), block_offset)
    return Extent(offset, len(value) - 1, BlockId(0), 0, value[1:])


def extent_block(value: bytes) -> BlockId:
    """Return the block that an encoded extent names, 0 if it is inline."""
    return BlockId(_BLOCK_EXTENT.unpack(value)[1]) if value[0] else BlockId(0)


def extent_length(value: bytes) -> int:
    """Return the length in bytes of an encoded extent."""
    length: int = _BLOCK_EXTENT.unpack(value)[3] if value[0] else len(value) - 1
    return length


_DENTRY: Final = struct.Struct(">QQB")
_DIR_INDEX: Final = struct.Struct(">QB")


def encode_dentry(ino: Ino, seq: int, kind: int) -> bytes:
    """Return the value of a DENTRY key; *kind* is S_IFMT >> 12."""
    return _DENTRY.pack(ino, seq, kind)


def decode_dentry(value: bytes) -> tuple[Ino, int, int]:
    """Return inode number, position and kind of an encoded dentry."""
    ino, seq, kind = _DENTRY.unpack(value)
    return Ino(ino), seq, kind


def dentry_ino(value: bytes) -> Ino:
    """Return the inode number in an encoded dentry."""
    return Ino(int.from_bytes(value[:8], "big"))


def encode_dir_index(ino: Ino, kind: int, name: bytes) -> bytes:
    """Return the value of a DIR_INDEX key."""
    return _DIR_INDEX.pack(ino, kind) + name


def decode_dir_index(value: bytes) -> tuple[Ino, int, bytes]:
    """Return inode number, kind and name of an encoded directory position."""
    ino, kind = _DIR_INDEX.unpack_from(value)
    return Ino(ino), kind, value[_DIR_INDEX.size :]


R = TypeVar("R", bound=msgspec.Struct)


class Codec(Generic[R]):
    """Encodes and decodes one type of record."""

    def __init__(self, record: type[R]) -> None:
        self._decoder = msgspec.msgpack.Decoder(record)
        self._name = record.__name__
        self.encode = msgspec.msgpack.Encoder().encode

    def decode(self, value: bytes) -> R:
        """Return the record in *value*.

        Raises:
            StoreDamagedError: *value* is no such record.
        """
        try:
            return self._decoder.decode(value)
        except msgspec.MsgspecError as error:
            raise StoreDamagedError(f"unreadable {self._name}: {error}") from error


INODE: Final = Codec(InodeRecord)
ROOT: Final = Codec(RootRecord)
AGENT: Final = Codec(AgentRecord)
VERSION: Final = Codec(VersionRecord)
SNAPSHOT: Final = Codec(SnapshotRecord)
OUTPUT: Final = Codec(OutputRecord)
QUARANTINE: Final = Codec(QuarantineRecord)
VERIFIED: Final = Codec(VerifiedRecord)
BLOCK: Final = Codec(BlockRecord)
SEGMENT: Final = Codec(SegmentRecord)
COUNTERS: Final = Codec(CounterRecord)
SCRUB: Final = Codec(ScrubRecord)


def protect(record: bytes) -> bytes:
    """Return *record* behind its checksum: LMDB itself does not notice a flipped byte."""
    return record_checksum(record) + record


def unprotect(value: bytes | memoryview, what: str) -> bytes:
    """Return the record in *value*, whose checksum is right.

    Raises:
        StoreDamagedError: the checksum is wrong; *what* names the record.
    """
    record = bytes(value[RECORD_CHECKSUM_SIZE:])
    if bytes(value[:RECORD_CHECKSUM_SIZE]) != record_checksum(record):
        raise StoreDamagedError(f"checksum of {what} is wrong")
    return record
