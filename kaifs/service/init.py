"""Makes a store."""

from pathlib import Path

import msgspec

from kaifs.store.store import Store


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A store that is new."""

    path: str
    uuid: str


def create_store(path: Path) -> Result:
    """Make a store in the folder *path*, which must be new or empty.

    Raises:
        StoreNotEmptyError: something is there already.
        StoreIOError: the system refuses.
    """
    with_parents = path.absolute()
    store = Store.create(with_parents)
    try:
        return Result(path=str(with_parents), uuid=store.uuid)
    finally:
        store.close()
