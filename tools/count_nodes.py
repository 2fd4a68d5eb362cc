"""Counts the B+tree nodes that clone, diff, rollback and one change touch, by size of the tree.

::

    python -m tools.count_nodes 100 10000 100000

Counts depend on the code alone, not on the machine. A row shows a tree of so
many files in directories of 100: nodes in the tree; nodes asked for and made by
a clone, and by the switch of a rollback; nodes that one changed file adds to
the next commit; nodes asked for by a diff of the two trees.
"""

import sys
import tempfile
from pathlib import Path

from kaifs.base.types import TOP_INO, Ino
from kaifs.store.store import Store
from kaifs.tree.diff import diff
from kaifs.tree.forest import Forest
from kaifs.tree.tree import Tree

_FILES_IN_A_DIRECTORY = 100
_REGULAR = 0o100644
_DIRECTORY = 0o40755


def fill(tree: Tree, files: int) -> Ino:
    """Make *files* small files in *tree*; return one from the middle."""
    middle = folder = TOP_INO
    for number in range(files):
        if number % _FILES_IN_A_DIRECTORY == 0:
            folder = tree.make(TOP_INO, b"d%d" % number, _DIRECTORY, 0, 0, 1)
        ino = tree.make(folder, b"f%d" % number, _REGULAR, 0, 0, 1)
        tree.write(ino, 0, b"%d" % number, 1)
        if number == files // 2:
            middle = ino
    return middle


def row(folder: Path, files: int) -> list[int]:
    """Return the counts for a tree of *files* files."""
    store = Store.create(folder)
    try:
        forest = Forest(store)
        tree = forest.new_tree(0o755, 0, 0)
        middle = fill(tree, files)
        agent = store.add_agent("bot", 0, 0, tree.root)
        store.commit()
        counts = [files, store.nodes.next_node - 1]

        def measured(before: tuple[int, int]) -> list[int]:
            return [store.nodes.visits - before[0], store.nodes.next_node - before[1]]

        before = store.nodes.visits, store.nodes.next_node
        old = forest.clone(tree)
        counts += measured(before)
        before = store.nodes.visits, store.nodes.next_node
        store.switch_head(agent, forest.clone(old).root, "")
        counts += measured(before)
        store.commit()
        tree.write(middle, 0, b"x", 2)
        counts.append(store.nodes.dirty_count)
        before = store.nodes.visits, store.nodes.next_node
        assert len(list(diff(old, tree))) == 1
        counts += measured(before)[:1]
        return counts
    finally:
        store.close(commit=False)


def main() -> None:
    """Print a row for each number of files on the command line."""
    print(f"{'files':>8} {'nodes':>8} {'clone':>12} {'rollback':>12} {'change':>8} {'diff':>8}")
    for files in map(int, sys.argv[1:] or ["100", "10000", "100000"]):
        with tempfile.TemporaryDirectory() as folder:
            size, nodes, *counted, change, visited = row(Path(folder) / "store", files)
            clone, made, asked, switched = counted
            print(
                f"{size:8} {nodes:8} {clone:4} + {made} new {asked:4} + {switched} new "
                f"{change:8} {visited:8}"
            )


if __name__ == "__main__":
    main()
