"""Bad input for every verb: one line with a code, an exit status, and an unchanged store."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from kaifs.api.access import call
from kaifs.api.versions import AgentVersionManager
from kaifs.cli.main import VERBS as COMMANDS
from kaifs.cli.main import main
from kaifs.daemon import lifecycle
from kaifs.service.verbs import VERBS
from kaifs.store.store import Store
from kaifs.tree.fsck import check

# What `{store}` and `{tmp}` are is told for each run; `{tmp}` has what `_fill` puts there.
BAD: list[tuple[str, str]] = [
    ("init {store}", "E111"),
    ("init {tmp}/file", "E111"),
    ("import bot {tmp}/none --as 2.0.0", "E130"),
    ("import bot {tmp}/file --as 2.0.0", "E130"),
    ("import bot {store} --as 2.0.0", "E130"),
    ("import bot {tmp}/source --as 1.0.0", "E126"),
    ("import bot {tmp}/source --as 1.0.0+build", "E126"),
    ("import bot {tmp}/source --as v2.0.0", "E120"),
    ("import bot {tmp}/source --as 2.0", "E120"),
    ("import bot {tmp}/source --as 2.0.0-" + "x" * 300, "E120"),
    ("import s-bot {tmp}/source --as 1.0.0", "E121"),
    ("import ../bot {tmp}/source --as 1.0.0", "E121"),
    ("import " + "b" * 65 + " {tmp}/source --as 1.0.0", "E121"),
    ("import bot {tmp}/source --as 2.0.0 --sign-key {tmp}/none", "E17."),
    ("import bot {tmp}/source --as 2.0.0 --sign-key {tmp}/file", "E17."),
    ("import bot {tmp}/source --as 2.0.0 --sign-key {tmp}", "E17."),
    ("import bot {tmp}/evil --as 2.0.0", "E17."),
    ("export nobody {tmp}/out", "E123"),
    ("export bot@9.9.9 {tmp}/out", "E101"),
    ("export bot/@snapshots/none {tmp}/out", "E124"),
    ("export bot {tmp}/source", "E132"),
    ("export bot {tmp}/file", "E132"),
    ("export bot {tmp}/no/such/folder", "E132"),
    ("mount {store} {tmp}/none", "E133"),
    ("mount {store} {tmp}/source", "E133"),
    ("mount {store} {tmp}/empty -o nonsense", "E134"),
    ("mount {store} {tmp}/empty -o commit=soon", "E134"),
    ("mount {store} {tmp}/empty -o agent=nobody", "E123|E112"),
    ("mount {store} {tmp}/empty -o agent=bot,view=@versions/9.9.9", "E101|E112"),
    ("mount {tmp}/none {tmp}/empty", "E110"),
    ("restart {tmp}/empty", "E110"),
    ("umount {tmp}/empty", "E135"),
    ("umount {tmp}/none", "E135"),
    ("status --store {tmp}/none", "E110"),
    ("status --store {tmp}/file", "E110"),
    ("list nobody", "E123"),
    ("list bot@1.0.0", "E121"),
    ("list --store {tmp}/source", "E110"),
    ("log nobody", "E123"),
    ("log bot --limit 0", "E140"),
    ("show nobody", "E123"),
    ("show bot@9.9.9", "E101"),
    ("show bot@one", "E120"),
    ("show bot@", "E120"),
    ("show @1.0.0", "E121"),
    ("show bot/1.0.0", "E122"),
    ("show bot/@snapshots/", "E122"),
    ("show s-none", "E124"),
    ("manifest nobody", "E123"),
    ("manifest bot@9.9.9", "E101"),
    ("seal nobody", "E123"),
    ("seal bot 1.0.0", "E126"),
    ("seal bot 01.0.0", "E120"),
    ("seal bot --from nobody", "E123"),
    ("seal bot --from bot@9.9.9", "E101"),
    ("seal bot --tag \udcff", "E140"),
    ("seal bot 2.0.0 --sign-key {tmp}/none", "E17."),
    ("diff bot nobody", "E123"),
    ("diff bot@1.0.0 bot@9.9.9", "E101"),
    ("diff bot", "E122"),
    ("rollback bot 9.9.9", "E101"),
    ("rollback nobody 1.0.0", "E123"),
    ("rollback bot ^1", "E120"),
    ("snapshot nobody", "E123"),
    ("snapshot bot@9.9.9", "E101"),
    ("snapshot bot --name kept", "E127"),
    ("snapshot bot --name a/b", "E121"),
    ("snapshot bot --memory much", "E140"),
    ("snapshot bot --memory 1k", "E140"),
    ("snapshot bot --cpus 0", "E140"),
    ("snapshot bot --storage -1", "E140"),
    ("snapshot bot --pids 1", "E140"),
    ("snapshot bot --env NOVALUE", "E140"),
    ("snapshot bot --allow ../etc", "E140"),
    ("snapshot bot --allow /proc", "E140"),
    ("snapshot bot --deny-syscall ../x", "E140"),
    ("snapshot bot --image alpine", "E140"),
    ("snapshot bot --suite {tmp}/file", "E140"),
    ("snapshot bot --test --suite {tmp}/none", "E141"),
    ("snapshots nobody", "E123"),
    ("run nobody -- true", "E123"),
    ("run bot@9.9.9 -- true", "E101"),
    ("run kept", "E140"),
    ("run kept --memory 1g -- true", "E140"),
    ("run bot --memory much -- true", "E140"),
    ("test none", "E124"),
    ("test bot@1.0.0", "E122"),
    ("test kept --suite {tmp}/none", "E141"),
    ("test kept --suite {tmp}/file", "E141"),
    ("test kept --suite {tmp}", "E141"),
    ("test kept --log", "E142"),
    ("commit none", "E124"),
    ("commit kept", "E142"),
    ("commit kept --as x", "E142"),
    ("discard none", "E124"),
    ("discard bot", "E122"),
    ("remove bot@1.0.0", "E128"),
    ("remove bot", "E122"),
    ("remove bot@9.9.9", "E101"),
    ("prune nobody --keep-last 1", "E123"),
    ("prune bot", "E18."),
    ("sign bot@9.9.9", "E101"),
    ("sign bot", "E122"),
    ("sign bot@1.0.0 --key {tmp}/none", "E17."),
    ("sign bot@1.0.0 --key {tmp}/file", "E17."),
    ("key trust {tmp}/none --as me", "E17."),
    ("key trust {tmp}/file --as me", "E17."),
    ("key revoke {tmp}/none", "E17."),
    # Bytes that are no text.
    ("show \udcff", "E121|E140"),
    ("list \udcff", "E121|E140"),
    ("import \udcff {tmp}/source --as 1.0.0", "E121|E140"),
    ("import bot {tmp}/\udcff --as 2.0.0", "E130"),
    ("import bot {tmp}/source --as \udcff", "E120|E140"),
    ("export bot@\udcff {tmp}/out", "E120|E140"),
    ("export bot {tmp}/file/\udcff", "E132"),
    ("seal bot \udcff", "E120|E140"),
    ("seal bot -m \udcff", "E140"),
    ("rollback bot \udcff", "E120|E140"),
    ("snapshot bot --name \udcff", "E121|E140"),
    ("snapshot bot --env A=\udcff", "E140"),
    ("snapshot bot --allow /\udcff", "E140"),
    ("test kept --suite {tmp}/\udcff", "E141"),
    ("quarantine add bot@1.0.0 --reason \udcff", "E140"),
    ("key trust {tmp}/\udcff --as me", "E17."),
    ("umount {tmp}/\udcff", "E135"),
    ("verify nobody", "E123"),
    ("verify bot@9.9.9", "E101"),
    ("verify bot@1.0.0 bot@one", "E120"),
    ("quarantine list nobody", "E123"),
    ("quarantine add bot@9.9.9 --reason why", "E101"),
    ("quarantine release bot@9.9.9", "E1.."),
    ("policy nobody", "E123"),
    ("gc --store {tmp}/none", "E110"),
    ("fsck --store {tmp}/none", "E110"),
    ("fsck --repair --store {tmp}/none", "E110"),
    ("scrub --store {tmp}/none", "E110"),
]

USAGE = [
    "",
    "nonsense",
    "import",
    "import bot",
    "import bot {tmp}/source",
    "seal bot 2.0.0 --bump minor",
    "seal bot --bump huge",
    "seal bot --type weekly",
    "rollback bot",
    "diff",
    "diff bot bot --stat -p",
    "log bot --limit many",
    "snapshot bot --read-only --writable",
    "test kept --log --suite {tmp}/file",
    "key trust {tmp}/file",
    "quarantine",
    "quarantine add bot@1.0.0",
    "prune bot --keep-last few",
    "policy bot --on-damage panic",
    "completion tcsh",
    "gc --force",
]

WITHOUT_FAILURE = {"doctor", "completion"}
"""One tells what is missing and fails at nothing, the other knows its shells by usage."""
STATUS = {"run": 125, "diff": 2}
"""Where it is not 1. Source: contract."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A store with `bot@1.0.0` and the snapshot `kept`."""

    store: Path
    tmp: Path
    before: bytes = b""
    """The state that nothing may change."""

    def words(self, line: str) -> list[str]:
        """Return the arguments that *line* stands for."""
        filled = line.replace("{store}", str(self.store)).replace("{tmp}", str(self.tmp))
        return filled.split(" ") if filled else []

    def state(self) -> bytes:
        """Return everything that the store tells, to compare before with after."""
        told = [call(self.store, "list", VERBS["list"].params(agent="bot"))]
        status = call(self.store, "status", VERBS["status"].params())
        told += [status.space.logical, status.space.unique, status.space.agents]
        return msgspec.json.encode([told, sorted(os.listdir(self.tmp))])


@pytest.fixture(scope="module", params=["embedded", "daemon"])
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    """The same for all, for nothing may change it."""
    folder = tmp_path_factory.mktemp("bad")
    found = Bench(folder / "store", folder / "tmp")
    _fill(found)
    (folder / "mnt").mkdir()
    with _environment(found.store):
        if request.param == "daemon":
            if not os.access("/dev/fuse", os.R_OK | os.W_OK):
                pytest.skip("/dev/fuse cannot be opened")
            lifecycle.mount(found.store, folder / "mnt", [])
        yield replace(found, before=found.state())
        if request.param == "daemon":
            lifecycle.umount(folder / "mnt")
    store = Store.open(found.store)
    assert check(store) == []
    store.close()


def _fill(bench: Bench) -> None:
    for name in ("source", "empty", "evil"):
        (bench.tmp / name).mkdir(parents=True)
    (bench.tmp / "file").write_text("no suite, no key, no folder\n")
    (bench.tmp / "source" / "a.txt").write_text("first\n")
    (bench.tmp / "evil" / "agent.toml").write_text("name = [\n")
    Store.create(bench.store).close()
    AgentVersionManager("bot", bench.store).import_version(bench.tmp / "source", "1.0.0")
    params = VERBS["snapshot"].params(reference="bot", name="kept")
    call(bench.store, "snapshot", params)


@contextmanager
def _environment(store: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KAIFS_STORE", str(store))
        yield


@pytest.mark.parametrize(("line", "code"), BAD, ids=[ascii(line[:60]) for line, _ in BAD])
def test_bad_input_is_one_line_with_its_code_and_changes_nothing(
    bench: Bench, line: str, code: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = bench.words(line)

    plain = main([words[0], *words[1:]]) if "--" in words else main([*words, "--quiet"])
    out, err = capfd.readouterr()
    assert re.fullmatch(rf"kaifs: ({code}): [^\n]*\S\n", err)
    assert "Traceback" not in out + err
    assert plain == STATUS.get(words[0], 1)

    status = main([words[0], "--json", *words[1:]])
    out, err = capfd.readouterr()
    assert re.fullmatch(rf"kaifs: ({code}): [^\n]*\S\n", err)
    error = json.loads(out)["error"]
    assert re.fullmatch(code, error["code"])
    assert error.keys() == {"code", "message", "details"}
    assert status == plain

    assert bench.state() == bench.before


@pytest.mark.parametrize("line", USAGE)
def test_wrong_usage_is_2(bench: Bench, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(bench.words(line))

    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert (out, "Traceback" in err) == ("", False)
    assert err.startswith("usage: kaifs")
    assert bench.state() == bench.before


def test_every_verb_is_tried() -> None:
    assert {line.split(" ")[0] for line, _ in BAD} | WITHOUT_FAILURE == COMMANDS.keys()
