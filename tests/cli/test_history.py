"""log, prune, list --tag, doctor: what they print, and that a daemon prints the same."""

import json
import os
import shutil
from pathlib import Path

import pytest

from kaifs.cli.graph import Graph
from kaifs.cli.main import main
from tests.cli.conftest import Done, Shell

needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse"
)


def drawn(*history: tuple[str, str | None]) -> list[str]:
    """Return the graph of versions, newest first, each with its parent."""
    graph = Graph()
    return [line for name, parent in history for line in graph.draw(name, parent, [name])]


def test_a_straight_history_is_one_column() -> None:
    assert drawn(("c", "b"), ("b", "a"), ("a", None)) == ["* c", "* b", "* a"]


def test_branches_have_columns_that_join_where_they_came_from() -> None:
    assert drawn(("d", "a"), ("c", "b"), ("b", "a"), ("a", None)) == [
        "* d",
        "| * c",
        "| * b",
        "|/",
        "* a",
    ]


def test_a_column_in_the_middle_moves_over_others() -> None:
    assert drawn(("e", "a"), ("d", "b"), ("c", "a"), ("b", "a"), ("a", None)) == [
        "* e",
        "| * d",
        "| | * c",
        "|_|/",
        "| * b",
        "|/",
        "* a",
    ]


def test_a_history_that_ends_lets_the_columns_behind_it_move_up() -> None:
    """Its parent was removed, or it has none."""
    assert drawn(("c", None), ("b", "a"), ("a", None)) == ["* c", "* b", "* a"]
    assert drawn(("d", "x"), ("c", "b"), ("x", None), ("b", None)) == [
        "* d",
        "| * c",
        "* | x",
        " /",
        "* b",
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a branch, tags and notes, to be copied."""
    place = tmp_path_factory.mktemp("history")
    (place / "source" / "lib").mkdir(parents=True)
    (place / "source" / "a.txt").write_text("first\n")
    (place / "source" / "lib" / "x.py").write_text("x = 1\n")
    shell = Shell(place / "store")
    shell.fine("init")
    shell.fine("import", "bot", place / "source", "--as", "1.0.0")
    shell.fine("seal", "bot", "1.1.0", "-m", "better\nand longer", "--tag", "stable")
    shell.fine("rollback", "bot", "1.0.0")
    shell.fine("seal", "bot", "2.0.0", "--author", "ann", "--type", "release")
    return shell.store


@pytest.fixture
def history(kaifs: Shell, made: Path) -> Shell:
    """A store with `bot`: 1.1.0 and 2.0.0 came from 1.0.0."""
    shutil.copytree(made, kaifs.store)
    return kaifs


def test_log_is_a_graph_with_what_was_said(history: Shell) -> None:
    lines = history.fine("log", "bot").splitlines()

    dates = [line for line in lines if "Date:" in line]
    assert len(dates) == 3
    assert [line for line in lines if line not in dates] == [
        "* version 2.0.0 (current)",
        "| Parent: 1.0.0",
        "| Type:   release",
        "| Author: ann",
        "|",
        "| * version 1.1.0 (tag: stable)",
        "| | Parent: 1.0.0",
        "| | Type:   manual",
        "| | Author: system",
        "| |",
        "| |     better",
        "| |     and longer",
        "| |",
        "|/",
        "* version 1.0.0",
        "  Type:   manual",
        "  Author: system",
    ]
    assert history.fine("log", "bot", "--oneline", "-n", "2") == (
        "* 2.0.0 (current)\n| * 1.1.0 (tag: stable) better\n"
    )


def test_log_of_a_path_tells_what_happened_to_it(history: Shell) -> None:
    assert history.fine("log", "bot", "lib/x.py", "--oneline") == "1.0.0\nA\tlib/x.py\n"
    (entry,) = json.loads(history.fine("log", "bot", "lib", "--json"))
    assert entry["changes"] == [
        {"status": "A", "path": "lib"},
    ]


def test_what_users_wrote_does_not_reach_the_terminal_as_it_is(history: Shell) -> None:
    history.fine(
        "seal", "bot", "3.0.0", "-m", "\x1b[31mred", "--tag", "a\x1bb", "--author", "\x1b]0;x"
    )

    for verb in (
        ("log", "bot"),
        ("list", "bot", "--tag", "*"),
        ("prune", "bot", "--keep-last", "1"),
    ):
        assert "\x1b" not in history.fine(*verb)


def test_prune_tells_what_stays_and_what_goes(history: Shell) -> None:
    out = history.fine("prune", "bot", "--keep-tagged", "st*", "--dry-run")

    assert "2.0.0" in out.partition("To go:")[0]
    assert "1.0.0" in out.partition("To go:")[2]
    assert out.endswith("Would remove 1 version of bot\n")
    done = json.loads(history.fine("prune", "bot", "--keep-tagged", "--json"))
    assert [version["version"] for version in done["removed"]] == ["1.0.0"]
    assert [version["keptBy"] for version in done["kept"]] == [["current"], ["tagged stable"]]
    assert history.fine("log", "bot", "--oneline") == (
        "* 2.0.0 (current) (parent 1.0.0 removed)\n"
        "* 1.1.0 (tag: stable) (parent 1.0.0 removed) better\n"
    )


def test_the_policy_holds_the_rules_for_prune(history: Shell) -> None:
    history.fine("policy", "bot", "--keep-last", "1", "--keep-tagged", "x")
    assert "--keep-last 1 --keep-tagged x" in history.fine("policy", "bot")

    assert history.fine("prune", "bot", "-q") == ""

    assert history.fine("log", "bot", "--oneline").splitlines()[0].startswith("* 2.0.0")
    history.fine("policy", "bot", "--keep-all")
    assert history("prune", "bot").err.startswith("kaifs: E185: ")


def test_bad_input_is_one_line_with_its_code(
    history: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    before = history.fine("list", "bot", "--json")

    for arguments, code in (
        (("log", "nobody"), "E123"),
        (("log", "bot@1.0.0"), "E121"),
        (("log", "bot", "-n", "-5"), "E140"),
        (("log", "bot", "../x"), "E140"),
        (("prune", "bot"), "E185"),
        (("prune", "bot", "--keep-last", "-1"), "E140"),
        (("prune", "bot", "--keep-last", "9" * 18), "E140"),
        (("prune", "bot", "--keep-within", "1x"), "E140"),
        (("list", "--tag", "x"), "E140"),
        (("remove", "bot"), "E122"),
        (("remove", "bot@1.0.0"), "E128"),
        (("policy", "bot", "--keep-all", "--keep-last", "1"), "E140"),
    ):
        status = main(["--store", str(history.store), *arguments])
        out, err = capsys.readouterr()
        assert (status, out) == (1, ""), arguments
        assert err.startswith(f"kaifs: {code}: "), arguments
        assert len(err.splitlines()) == 1
    for references in (("bot@1.0.0", "bot@9.0.0"), ("nobody", "bot"), ("bot",)):
        status = main(["--store", str(history.store), "diff", *references])
        out, err = capsys.readouterr()
        assert (status, out) == (2, ""), references
        assert err.startswith("kaifs: E1")

    assert history.fine("list", "bot", "--json") == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["log"],
        ["log", "bot", "-n", "many"],
        ["log", "bot", "-n", "9" * 5000],
        ["prune", "bot", "--keep-last", "9" * 30],
        ["prune", "bot", "--keep-last", "x"],
        ["prune", "bot", "--keep-type", "nonsense"],
        ["completion"],
        ["doctor", "extra"],
        ["diff", "bot", "--stat", "-p"],
    ],
)
def test_wrong_usage_is_told_as_such(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage: kaifs" in capsys.readouterr().err


def test_doctor_is_one_document_and_its_status_tells_whether_something_lacks(
    kaifs: Shell, tmp_path: Path
) -> None:
    done = kaifs("doctor", "--json")
    assert done.status == (0 if done.document["isComplete"] else 1)
    assert done.document["checks"][0].keys() == {"group", "ok", "isNeeded", "found", "remedy"}

    kaifs.environment["PATH"] = str(tmp_path)
    done = kaifs("doctor", "--quiet")
    assert done.status == 1
    assert "  lack  bwrap is missing\n        mend: apt-get install bubblewrap\n" in done.out
    assert "  ok  " not in done.out


@needs_fuse
@pytest.mark.fuse
def test_a_daemon_tells_the_same(history: Shell, tmp_path: Path) -> None:
    """And does: prune, with the version's folder gone from the mount."""
    verbs = (
        ("log", "bot"),
        ("log", "bot", "a.txt", "--json"),
        ("list", "bot", "--tag", "stable", "--json"),
        ("diff", "-p", "bot@1.1.0", "bot@2.0.0"),
        ("prune", "bot", "--keep-last", "1", "--dry-run", "--json"),
        ("log", "bot", "-n", "0"),
        ("prune", "bot"),
        ("__complete", "show", "bot@"),
    )

    def everything() -> list[Done]:
        return [history(*verb) for verb in verbs]

    embedded = everything()
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    history.fine("mount", history.store, mountpoint)
    try:
        assert everything() == embedded
        history.fine("prune", "bot", "--keep-tagged")
        assert sorted(os.listdir(mountpoint / "bot" / "@versions")) == ["1.1.0", "2.0.0"]
    finally:
        history.fine("umount", mountpoint)
