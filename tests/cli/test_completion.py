"""Completion: what could come next, in real shells."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kaifs.cli.main import VERBS, main, make_parser
from kaifs.service.record import Description
from kaifs.store.store import Store
from tests.cli.conftest import ROOT, Shell
from tests.service.desk import Desk

SHOW = "\x07"
"""Ctrl-G: a test binds it to printing the line as it is edited, and emptying it."""
TIMEOUT_S = 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with agents `bot` and `boring`, versions and a snapshot."""
    path = tmp_path_factory.mktemp("completion") / "store"
    desk = Desk(path)
    for name in ("bot", "boring"):
        tree = desk.forest.new_tree(0o755, os.getuid(), os.getgid())
        desk.store.add_agent(name, os.getuid(), os.getgid(), tree.root)
    desk.run("seal", agent="bot", label="1.0.0", description=Description(tags=("x",)))
    desk.run("seal", agent="bot", label="1.10.0")
    desk.run("snapshot", reference="bot", name="try-it")
    desk.store.close()
    return path


def candidates(store: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what could be the last word, with the directive at the end."""
    assert main(["__complete", "--store", str(store), *words]) == 0
    return [line.partition("\t")[0] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sn"], ["snapshot", "snapshots", ":only"]),
        (["list", "bo"], ["boring", "bot", ":only"]),
        (["show", "bot@"], ["bot@1.10.0", "bot@1.0.0", ":only"]),
        (["show", "bot@1.0"], ["bot@1.0.0", ":only"]),
        (["show", "try"], ["try-it", ":only"]),
        (["show", "bot/"], ["bot/@snapshots/try-it", ":only"]),
        (["show", "bot"], ["bot", "bot@1.10.0", "bot@1.0.0", ":only"]),
        (["remove", "bor"], ["boring@", ":nospace"]),
        (["discard", ""], ["try-it", ":only"]),
        (["rollback", "bot", ""], ["1.10.0", "1.0.0", ":only"]),
        (["rollback", "bot", "1.1"], ["1.10.0", ":only"]),
        (["diff", "-p", "bot@1.0.0", "bor"], ["boring", ":only"]),
        (["seal", "bot", "--bump", "m"], ["major", "minor", ":only"]),
        (["seal", "bot", "--bump=mi"], ["--bump=minor", ":only"]),
        (["seal", "--from", "bot@1.1"], ["bot@1.10.0", ":only"]),
        (["seal", "bot", ""], [":only"]),
        (["seal", "-m", "bot", "bo"], ["boring", "bot", ":only"]),
        (["import", "bot", ""], [":folders"]),
        (["test", "try-it", "--suite", ""], [":files"]),
        (["completion", "z"], ["zsh", ":only"]),
        (["nonsense", ""], ["init", ":only"]),
        (["list", "--", "bot", "x"], [":only"]),
    ],
)
def test_what_could_come_next(
    store: Path, words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = candidates(store, *words, capsys=capsys)

    if words[0] == "nonsense":
        assert found[0] == expected[0]
    else:
        assert found == expected


@pytest.mark.parametrize("verb", VERBS)
def test_each_verbs_options_are_there(
    store: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {"--json", "--help", "--store"} <= {*candidates(store, verb, "--", capsys=capsys)[:-1]}


def test_a_store_that_is_none_or_busy_gives_no_names_and_no_complaint(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And soon: somebody has pressed a key."""
    assert main(["__complete", "--store", str(tmp_path), "list", ""]) == 0
    held = Store.open(store)
    began = time.monotonic()
    try:
        assert main(["__complete", "--store", str(store), "list", ""]) == 0
    finally:
        held.close()

    assert time.monotonic() - began < 5
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("words", [["-"], ["--store"], ["\udcff", "x"], ["show", "x" * 10000], []])
def test_no_command_line_is_too_strange(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["__complete", *words]) == 0
    assert capfd.readouterr().err == ""


def test_the_hidden_verb_is_in_no_help() -> None:
    assert "__complete" not in make_parser().format_help()


def test_an_unknown_shell_is_wrong_usage(kaifs: Shell) -> None:
    done = kaifs("completion", "csh")

    assert done.status == 2
    assert "invalid choice" in done.err


# --- in the shells themselves -----------------------------------------------------------------


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `kaifs` as a command."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "kaifs"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m kaifs "$@"\n')
    script.chmod(0o755)
    return folder


@pytest.fixture
def environment(store: Path, command: Path, tmp_path: Path) -> dict[str, str]:
    """What a shell sees: no configuration of anybody's."""
    return {
        "PATH": f"{command}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "ZDOTDIR": str(tmp_path),
        "KAIFS_STORE": str(store),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
        "KAIFS_TEST": os.environ["KAIFS_TEST"],
    }


class Terminal:
    """An interactive shell, and what is typed into it."""

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: Path) -> None:
        self._main, other = pty.openpty()
        self._process = subprocess.Popen(
            arguments,
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        os.close(other)
        self._seen = ""

    def type(self, text: str) -> None:
        """Type *text*."""
        os.write(self._main, text.encode())

    def wait_for(self, text: str) -> str:
        """Wait until *text* was printed, and return the rest of its line."""
        until = time.monotonic() + TIMEOUT_S
        while True:
            before, found, after = self._seen.partition(text)
            if found and "\n" in after:
                line, _, self._seen = after.partition("\n")
                return line.rstrip("\r")
            ready, _, _ = select.select([self._main], [], [], max(0, until - time.monotonic()))
            assert ready, f"{text!r} does not come; there is {before + found + after!r}"
            self._seen += os.read(self._main, 65536).decode(errors="replace")

    def completed(self, line: str) -> str:
        """Return what *line* becomes when Tab is pressed at its end."""
        self.type(f"{line}\t{SHOW}")
        return self.wait_for("LINE:").partition("|")[0]

    def close(self) -> None:
        """End the shell."""
        self._process.kill()
        self._process.wait()
        os.close(self._main)


@contextmanager
def terminal(arguments: list[str], environment: dict[str, str], folder: Path) -> Iterator[Terminal]:
    """Lend an interactive shell."""
    shell = Terminal(arguments, environment, folder)
    try:
        yield shell
    finally:
        shell.close()


@pytest.fixture
def bash(environment: dict[str, str], tmp_path: Path) -> Iterator[Terminal]:
    """An interactive bash with the completion."""
    show = r'printf "LINE:%s|\n" "$READLINE_LINE"; READLINE_LINE='
    with terminal(["bash", "--norc", "--noprofile", "-i"], environment, tmp_path) as shell:
        shell.type("PS1= ; source <(kaifs completion bash); bind 'set bell-style none'\n")
        shell.type(f"bind -x '\"\\C-g\": {show}'; echo READY:\n")
        shell.wait_for("\nREADY:")
        yield shell


@pytest.fixture
def zsh(environment: dict[str, str], tmp_path: Path) -> Iterator[Terminal]:
    """An interactive zsh with the completion."""
    if shutil.which("zsh") is None:
        pytest.skip("no zsh here")
    with terminal(["zsh", "-f", "-i"], environment, tmp_path) as shell:
        shell.type("PS1= ; autoload -U compinit; compinit -u; source <(kaifs completion zsh)\n")
        shell.type("setopt no_list_beep no_beep; bindkey '^G' show; zle -N show\n")
        shell.type('show() { zle -I; print -r -- "LINE:$BUFFER|"; BUFFER= }; echo READY:\n')
        shell.wait_for("\nREADY:")
        yield shell


COMPLETED = [
    ("kaifs rollb", "kaifs rollback "),
    ("kaifs list bor", "kaifs list boring "),
    ("kaifs show bot@1.1", "kaifs show bot@1.10.0 "),
    ("kaifs remove bor", "kaifs remove boring@"),
    ("kaifs show bot/", "kaifs show bot/@snapshots/try-it "),
    ("kaifs seal bot --bump mi", "kaifs seal bot --bump minor "),
    ("kaifs seal bot --bump=ma", "kaifs seal bot --bump=major "),
    ("kaifs rollback bot 1.0", "kaifs rollback bot 1.0.0 "),
    ("kaifs import bot some", "kaifs import bot somewhere/"),
    ("kaifs test try-it --suite sui", "kaifs test try-it --suite suite.toml "),
]


def test_bash_completes(bash: Terminal, tmp_path: Path) -> None:
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "suite.toml").touch()

    assert [(line, bash.completed(line)) for line, _ in COMPLETED] == COMPLETED


def test_zsh_completes(zsh: Terminal, tmp_path: Path) -> None:
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "suite.toml").touch()

    assert [(line, zsh.completed(line)) for line, _ in COMPLETED] == COMPLETED


def test_fish_completes(environment: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("no fish here")
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "suite.toml").touch()
    lines = [line for line, _ in COMPLETED]
    script = "kaifs completion fish | source\n" + "".join(
        f"complete -C '{line}'; echo '#'\n" for line in lines
    )

    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    found = [
        [word.partition("\t")[0] for word in block.split("\n") if word]
        for block in done.stdout.split("#\n")[:-1]
    ]
    last = [
        line.rpartition(" ")[2].strip() for line in (wanted.rstrip() for _, wanted in COMPLETED)
    ]
    assert [words[0] for words in found] == last
