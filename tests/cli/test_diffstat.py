"""`diff --stat` looks as git's does."""

import pytest

from kaifs.cli.diffstat import stat_lines
from kaifs.service.diff import Change


def change(path: str = "x", *, status: str = "M", **facts: object) -> Change:
    return Change(status=status, path=path, **facts)  # type: ignore[arg-type]  # plain values


def test_names_and_numbers_are_aligned_and_binaries_told_by_size() -> None:
    lines = stat_lines(
        [
            change("long/name.py", added=10, removed=2),
            change("big", is_binary=True, old_size=5, new_size=70000),
            change("mode.sh"),
        ]
    )

    assert lines == [
        " long/name.py |  12 ++++++++++--",
        " big          | Bin 5 -> 70000 bytes",
        " mode.sh      |   0",
        " 3 files changed, 10 insertions(+), 2 deletions(-)",
    ]


def test_a_graph_fits_the_line_and_shows_whatever_is_there() -> None:
    lines = stat_lines([change(added=9000, removed=1), change("y", removed=1)])

    assert len(lines[0]) == 79
    assert lines[0].endswith("+-")
    assert lines[1] == " y |    1 -"


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((1, 0), " 1 file changed, 1 insertion(+)"),
        ((0, 2), " 1 file changed, 2 deletions(-)"),
        ((0, 0), " 1 file changed, 0 insertions(+), 0 deletions(-)"),
    ],
)
def test_the_sum_says_what_git_says(counts: tuple[int, int], text: str) -> None:
    added, removed = counts

    assert stat_lines([change(added=added, removed=removed)])[-1] == text


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("a", "b", "a => b"),
        ("lib/a.py", "lib/b.py", "lib/{a.py => b.py}"),
        ("old/x/a", "new/x/a", "{old => new}/x/a"),
        ("a/b/c", "a/c", "a/{b => }/c"),
        ("one", "two\n", 'one => "two\\n"'),
    ],
)
def test_a_rename_says_once_what_both_paths_share(old: str, new: str, shown: str) -> None:
    (line, _) = stat_lines([change(new, status="R", old_path=old)])

    assert line == f" {shown} | 0"


def test_a_name_that_would_break_the_line_is_quoted() -> None:
    assert stat_lines([change('a\n"b"')])[0] == ' "a\\n\\"b\\"" | 0'


def test_folders_that_came_with_their_files_are_left_out() -> None:
    folder = change("lib", status="A", new_mode="040755")
    file = change("lib/x", status="A", new_mode="100644", added=1)

    assert stat_lines([folder, file])[0] == " lib/x | 1 +"
    assert stat_lines([folder])[0] == " lib | 0"
    assert stat_lines([]) == []
