"""Write docs/ERRORS.md: every error code, its message, errno, cause and cure.

The table is read off the classes in `kaifs.base.errors`, so that it cannot
differ from them. Run `python -m tools.errors_table` after changing one;
`--check` changes nothing and fails if the file is not up to date.
"""

import argparse
import errno
import inspect
import sys
from pathlib import Path
from typing import Final

from kaifs.base.errors import KaifsError, error_classes

TABLE: Final = Path(__file__).parent.parent / "docs" / "ERRORS.md"

HEAD: Final = """\
# Errors

Every way in which kaifs can refuse or fail. Made from `kaifs/base/errors.py` by
`python -m tools.errors_table`; a test compares the two.

A verb that fails prints one line, `kaifs: CODE: message (what it is about)`, and
exits with status 1; with `--json` it prints
`{"error": {"code": …, "message": …, "details": …}}` as well. A program that uses the
mount sees the errno. E101 to E105 and their messages are the specification's, word
for word. A code is never given a second meaning.

| code | message | errno | when | what to do |
| --- | --- | --- | --- | --- |
"""


def cause(cls: type[KaifsError]) -> str:
    """Return the first line of the docstring of *cls*: when it is raised."""
    return (inspect.getdoc(cls) or "").partition("\n")[0].partition(" Source:")[0]


def row(cls: type[KaifsError]) -> str:
    """Return the table's line about *cls*."""
    cells = [str(cls.code), cls.message, errno.errorcode[cls.errno], cause(cls), cls.hint]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells).rstrip() + " |\n"


def render() -> str:
    """Return the whole document."""
    return HEAD + "".join(row(cls) for cls in error_classes())


def main() -> int:
    """Write the table, or compare it. Returns an exit status."""
    parser = argparse.ArgumentParser(description="Write docs/ERRORS.md from the error classes.")
    parser.add_argument("--check", action="store_true", help="compare only")
    if not parser.parse_args().check:
        TABLE.write_text(render(), encoding="utf-8")
        return 0
    if TABLE.exists() and TABLE.read_text(encoding="utf-8") == render():
        return 0
    print("docs/ERRORS.md is not up to date: run python -m tools.errors_table", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
