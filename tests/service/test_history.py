"""History: which version came from which, what changed a path, and what is kept."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from kaifs.base.errors import (
    AgentNotFoundError,
    ArgumentValueError,
    BadNameError,
    KaifsError,
    NoRuleError,
    VersionInUseError,
)
from kaifs.meta.database import Table
from kaifs.meta.records import VERSION
from kaifs.service.record import Description
from kaifs.service.retention import Candidate, Retention, kept_by, parse_duration
from kaifs.tree.tree import AttributeChange
from tests.service.desk import STRANGER, Desk

DAY_S = 86400
START_NS = 1_700_000_000_000_000_000
"""2023-11-14T22:13:20Z, a Tuesday."""


@pytest.fixture
def bot(desk: Desk, folder: Path) -> Desk:
    """A store with `bot@1.0.0`."""
    desk.take("bot", "1.0.0", folder)
    return desk


def seal(desk: Desk, label: str, **description: Any) -> None:
    desk.run("seal", agent="bot", label=label, description=Description(**description))


def labels(desk: Desk) -> list[str]:
    return [version.version for version in desk.run("list", agent="bot").versions]


def log(desk: Desk, **params: Any) -> list[Any]:
    return list(desk.run("log", agent="bot", **params).entries)


def told(desk: Desk, path: bytes, **params: Any) -> list[tuple[str, str, str]]:
    """Return version, letter and path of what changed *path*."""
    return [
        (entry.version, change.status, change.path)
        for entry in log(desk, path=path, **params)
        for change in entry.changes
    ]


# --- the graph -----------------------------------------------------------------------------


def test_the_log_is_newest_first_with_each_parent_after_its_children(bot: Desk) -> None:
    seal(bot, "1.1.0", notes="better", tags=("stable",))
    bot.run("rollback", agent="bot", version="1.0.0")
    seal(bot, "2.0.0", snapshot_type="release")

    entries = log(bot)

    assert [(entry.version, entry.parent) for entry in entries] == [
        ("2.0.0", "1.0.0"),
        ("1.1.0", "1.0.0"),
        ("1.0.0", None),
    ]
    assert [entry.is_current for entry in entries] == [True, False, False]
    assert entries[0].metadata.snapshot_type == "release"
    assert entries[1].metadata.tags == ("stable",)


def test_a_clock_that_went_back_does_not_put_a_parent_before_its_child(bot: Desk) -> None:
    bot.clock.advance_ns(-DAY_S * 10**9)
    seal(bot, "1.1.0")

    assert [entry.version for entry in log(bot)] == ["1.1.0", "1.0.0"]


def test_a_parent_that_was_removed_leaves_a_gap(bot: Desk) -> None:
    """The child goes on naming it; another version under its label is not its parent."""
    seal(bot, "1.1.0")
    seal(bot, "1.2.0")
    bot.run("remove", reference="bot@1.1.0", force=True)

    (child, _) = log(bot)
    assert (child.version, child.parent, child.is_parent_here) == ("1.2.0", "1.1.0", False)

    seal(bot, "1.1.0")
    child = next(entry for entry in log(bot) if entry.version == "1.2.0")
    assert not child.is_parent_here
    assert next(entry for entry in log(bot) if entry.version == "1.1.0").is_parent_here


def test_a_limit_counts_versions(bot: Desk) -> None:
    seal(bot, "1.1.0")
    seal(bot, "1.2.0")

    assert [entry.version for entry in log(bot, limit=2)] == ["1.2.0", "1.1.0"]


def test_a_parent_in_quarantine_is_told(bot: Desk) -> None:
    seal(bot, "1.1.0")
    seal(bot, "1.2.0")
    bot.store.quarantine_version(bot.store.get_agent("bot"), "1.1.0", "a test")

    (child, _) = log(bot)

    assert (child.parent, child.is_parent_here) == ("1.1.0", False)
    assert child.is_parent_quarantined


def test_a_version_whose_record_is_damaged_hides_no_other_and_is_not_pruned(bot: Desk) -> None:
    seal(bot, "1.1.0")
    seal(bot, "1.2.0")
    version = bot.store.get_version(bot.store.get_agent("bot"), "1.1.0")
    key = version.agent_id.to_bytes(8, "big") + b"1.1.0"
    broken = msgspec.structs.replace(version, record=b"{}")
    bot.store.pending.put(Table.VERSIONS, key, VERSION.encode(broken))

    found = bot.run("log", agent="bot")
    assert [entry.version for entry in found.entries] == ["1.2.0", "1.0.0"]
    assert found.damaged == ("1.1.0",)
    assert told(bot, b"a.txt") == [("1.0.0", "A", "a.txt")]
    pruned = bot.run("prune", agent="bot", retention=Retention(keep_last=1))
    assert [version.version for version in pruned.removed] == ["1.0.0"]
    assert {version.version: version.kept_by for version in pruned.kept}["1.1.0"] == ("damaged",)
    bot.store.pending.put(Table.VERSIONS, key, VERSION.encode(version))


def test_after_a_gap_a_path_is_compared_with_what_is_left_before_it(bot: Desk) -> None:
    bot.write("bot", b"a.txt", b"second\n")
    seal(bot, "1.1.0")
    seal(bot, "1.2.0")
    bot.run("remove", reference="bot@1.1.0", force=True)

    assert told(bot, b"a.txt") == [("1.2.0", "M", "a.txt"), ("1.0.0", "A", "a.txt")]
    assert told(bot, b"lib/x.py") == [("1.0.0", "A", "lib/x.py")]


# --- the history of a path ---------------------------------------------------------------------


def test_the_log_of_a_file_tells_what_added_changed_and_deleted_it(bot: Desk) -> None:
    seal(bot, "1.1.0")
    bot.write("bot", b"a.txt", b"second\n")
    seal(bot, "1.2.0")
    bot.write("bot", b"lib/x.py", b"")
    seal(bot, "1.3.0")
    tree = bot.current("bot")
    tree.reap(tree.unlink(tree.resolve(b""), b"a.txt", bot.clock.now_ns()))
    seal(bot, "1.4.0")

    assert told(bot, b"./a.txt/") == [
        ("1.4.0", "D", "a.txt"),
        ("1.2.0", "M", "a.txt"),
        ("1.0.0", "A", "a.txt"),
    ]
    assert [entry.version for entry in log(bot, path=b"a.txt", limit=1)] == ["1.4.0"]


def test_the_log_of_a_folder_tells_what_changed_below_it(bot: Desk) -> None:
    bot.write("bot", b"a.txt", b"elsewhere\n")
    seal(bot, "1.1.0")
    bot.write("bot", b"lib/new.py", b"")
    bot.write("bot", b"lib/x.py", b"")
    seal(bot, "1.2.0")

    # a.txt is a hard link of a file in lib.
    assert told(bot, b"lib")[:-1] == [
        ("1.2.0", "A", "lib/new.py"),
        ("1.2.0", "M", "lib/x.py"),
        ("1.1.0", "M", "lib/again.txt"),
    ]


def test_a_rename_is_told_at_both_names_and_can_be_followed(bot: Desk) -> None:
    bot.write("bot", b"lib/x.py", b"x = 2\n")
    seal(bot, "1.1.0")
    tree = bot.current("bot")
    lib = tree.resolve(b"lib")
    tree.rename(lib, b"x.py", tree.resolve(b""), b"y.py", bot.clock.now_ns())
    seal(bot, "1.2.0")

    assert told(bot, b"y.py") == [("1.2.0", "R", "y.py")]
    assert told(bot, b"lib/x.py") == [
        ("1.2.0", "R", "y.py"),
        ("1.1.0", "M", "lib/x.py"),
        ("1.0.0", "A", "lib/x.py"),
    ]
    assert told(bot, b"y.py", follow=True) == told(bot, b"lib/x.py")


def test_what_a_renamed_folder_took_along_is_followed_too(bot: Desk) -> None:
    tree = bot.current("bot")
    top = tree.resolve(b"")
    tree.rename(top, b"lib", top, b"library", bot.clock.now_ns())
    seal(bot, "1.1.0")

    assert told(bot, b"library/x.py", follow=True) == [
        ("1.1.0", "R", "library/x.py"),
        ("1.0.0", "A", "lib/x.py"),
    ]


def test_the_log_of_a_path_that_never_was_is_empty(bot: Desk) -> None:
    assert log(bot, path=b"nothing/here") == []


def test_the_log_of_a_path_costs_lookups_not_the_trees(bot: Desk) -> None:
    """However many versions there are, what they share is not read."""
    for number in range(1, 30):
        bot.write("bot", b"a.txt", b"%d\n" % number)
        seal(bot, f"1.{number}.0")
    log(bot, path=b"lib/x.py")
    before = bot.store.nodes.visits

    assert told(bot, b"lib/x.py") == [("1.0.0", "A", "lib/x.py")]

    assert bot.store.nodes.visits - before < 30 * 30


# --- retention --------------------------------------------------------------------------------


def candidate(label: str, days_ago: float, tags: tuple[str, ...] = ()) -> Candidate:
    return Candidate(label, START_NS - int(days_ago * DAY_S * 10**9), "manual", tags)


def kept(rules: Retention, *candidates: Candidate) -> list[str]:
    found = kept_by(rules, candidates)
    return [one.label for one, reasons in zip(candidates, found, strict=True) if reasons]


HOURLY = [candidate(str(hour), hour / 24) for hour in range(24 * 70)]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (Retention(keep_last=3), ["0", "1", "2"]),
        (Retention(keep_daily=3), ["0", "23", "47"]),
        # Of the days of the week a Sunday's last is the newest of its week.
        (Retention(keep_weekly=3), ["0", "47", "215"]),
        (Retention(keep_monthly=3), ["0", "335", "1079"]),
        (Retention(keep_yearly=3), ["0"]),
        (Retention(keep_within="3h"), ["0", "1", "2", "3"]),
        (Retention(), []),
    ],
)
def test_a_rule_keeps_the_newest_of_each_period(rules: Retention, expected: list[str]) -> None:
    """Periods are those of UTC, 22:13 is the newest."""
    assert kept(rules, *HOURLY) == expected


def test_periods_without_a_version_do_not_count() -> None:
    sparse = [candidate("a", 0), candidate("b", 400), candidate("c", 400.01), candidate("d", 3000)]

    assert kept(Retention(keep_daily=2), *sparse) == ["a", "b"]
    assert kept(Retention(keep_yearly=3), *sparse) == ["a", "b", "d"]


def test_tags_are_kept_by_pattern_and_the_reasons_add_up() -> None:
    versions = [candidate("a", 0, ("v1", "x")), candidate("b", 1, ("other",)), candidate("c", 2)]

    found = kept_by(Retention(keep_tagged=("v*", "x"), keep_last=1), versions)

    assert found == [("last", "tagged v1", "tagged x"), (), ()]
    assert kept(Retention(keep_tagged=("*",)), *versions) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "hours"), [("1d", 24), ("2w3h", 14 * 24 + 3), ("5h", 5), ("0h", 0)]
)
def test_a_duration_is_a_sum_of_parts(text: str, hours: int) -> None:
    duration = parse_duration(text)

    assert duration is not None
    assert (duration.months, duration.hours) == (0, hours)


def test_months_are_those_of_the_calendar_and_far_back_is_everything() -> None:
    """2023-11-14 less nine months is 2023-02-14: 273 days."""
    versions = [candidate("a", 0), candidate("b", 273), candidate("c", 273.1)]

    assert kept(Retention(keep_within="9m"), *versions) == ["a", "b"]
    assert kept(Retention(keep_within="999999y999999h"), *versions) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "rules",
    [
        Retention(keep_last=-1),
        Retention(keep_daily=1 << 40),
        Retention(keep_within="soon"),
        Retention(keep_within="-1d"),
        Retention(keep_within="1h1d"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(bot: Desk, rules: Retention) -> None:
    before = bot.state()

    with pytest.raises(ArgumentValueError):
        bot.run("prune", agent="bot", retention=rules)

    assert bot.state() == before


# --- prune and remove ----------------------------------------------------------------------------


def test_prune_takes_away_what_no_rule_keeps_and_says_why_the_rest_stays(bot: Desk) -> None:
    seal(bot, "1.1.0", tags=("stable",))
    seal(bot, "1.2.0", snapshot_type="release")
    seal(bot, "1.3.0")
    seal(bot, "1.4.0")
    rules = Retention(keep_last=1, keep_tagged=("st*",), keep_types=("release",))

    found = bot.run("prune", agent="bot", retention=rules)

    assert {version.version: version.kept_by for version in found.kept} == {
        "1.4.0": ("last", "current"),
        "1.2.0": ("type release",),
        "1.1.0": ("tagged stable",),
    }
    assert [version.version for version in found.removed] == ["1.3.0", "1.0.0"]
    assert labels(bot) == ["1.4.0", "1.2.0", "1.1.0"]
    bot.store.commit()
    bot.reopen()
    bot.run("gc")
    assert bot.read(bot.current("bot"), b"a.txt") == b"first\n"


def test_prune_keeps_what_something_alive_is_based_on(bot: Desk) -> None:
    seal(bot, "1.1.0")
    bot.run("snapshot", reference="bot@1.0.0", name="snap")
    seal(bot, "1.2.0")
    seal(bot, "1.3.0")
    bot.run("rollback", agent="bot", version="1.1.0")

    found = bot.run("prune", agent="bot", retention=Retention(keep_last=1))

    assert {version.version: version.kept_by for version in found.kept} == {
        "1.3.0": ("last",),
        "1.1.0": ("current",),
        "1.0.0": ("snapshot snap",),
    }
    assert labels(bot) == ["1.3.0", "1.1.0", "1.0.0"]


def test_a_dry_run_changes_nothing_and_tells_the_same(bot: Desk) -> None:
    seal(bot, "1.1.0")
    before = bot.state()

    dry = bot.run("prune", agent="bot", retention=Retention(keep_last=1), is_dry_run=True)

    assert bot.state() == before
    wet = bot.run("prune", agent="bot", retention=Retention(keep_last=1))
    assert (dry.kept, dry.removed) == (wet.kept, wet.removed)


def test_prune_refuses_to_go_without_a_rule_and_takes_the_policys(bot: Desk) -> None:
    seal(bot, "1.1.0")

    with pytest.raises(NoRuleError):
        bot.run("prune", agent="bot")
    bot.run("policy", agent="bot", retention=Retention(keep_last=1))
    bot.run("prune", agent="bot")

    assert labels(bot) == ["1.1.0"]
    with pytest.raises(ArgumentValueError):
        bot.run("policy", agent="bot", retention=Retention(keep_within="soon"))


def test_the_lineage_of_what_stays_is_left_as_it_was(bot: Desk) -> None:
    """Records are never written anew: their hashes and signatures hold."""
    seal(bot, "1.1.0")
    seal(bot, "1.2.0")
    agent = bot.store.get_agent("bot")
    before = bot.store.get_version(agent, "1.2.0").record

    bot.run("prune", agent="bot", retention=Retention(keep_last=1))

    assert bot.store.get_version(agent, "1.2.0").record == before
    (entry,) = log(bot)
    assert (entry.parent, entry.is_parent_here) == ("1.1.0", False)


def test_a_version_that_was_made_anew_does_not_hold_a_child_of_the_old_one(bot: Desk) -> None:
    seal(bot, "1.1.0")
    seal(bot, "1.2.0")
    bot.run("remove", reference="bot@1.1.0", force=True)
    seal(bot, "1.1.0")
    seal(bot, "1.3.0")

    with pytest.raises(VersionInUseError) as caught:
        bot.run("remove", reference="bot@1.1.0")

    assert caught.value.details["neededBy"] == ["bot@1.3.0"]


# --- who may, and what is refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "params", "error"),
    [
        ("log", {"agent": "nobody"}, AgentNotFoundError),
        ("log", {"agent": "../x"}, BadNameError),
        ("log", {"agent": "bot", "limit": 0}, ArgumentValueError),
        ("log", {"agent": "bot", "path": b"../../etc/passwd"}, ArgumentValueError),
        ("log", {"agent": "bot", "path": b"/"}, ArgumentValueError),
        ("log", {"agent": "bot", "path": b"a\0b"}, ArgumentValueError),
        ("prune", {"agent": "nobody", "retention": Retention(keep_last=1)}, AgentNotFoundError),
        ("list", {"tags": ("x",)}, ArgumentValueError),
        ("list", {"agent": "nobody", "tags": ("x",)}, AgentNotFoundError),
    ],
)
def test_bad_input_is_refused(
    bot: Desk, verb: str, params: dict[str, Any], error: type[KaifsError]
) -> None:
    before = bot.state()

    with pytest.raises(error):
        bot.run(verb, **params)

    assert bot.state() == before


def test_names_longer_than_a_name_can_be_are_nothing(bot: Desk) -> None:
    assert log(bot, path=b"x" * 5000) == []
    assert log(bot, path=b"a.txt/below") == []


def test_the_history_of_a_closed_file_is_told_to_nobody_else(bot: Desk) -> None:
    bot.write("bot", b"secret", b"")
    tree = bot.current("bot")
    tree.set_attributes(tree.resolve(b"secret"), AttributeChange(mode=0o600), 0)
    seal(bot, "1.1.0")

    assert len(bot.run("log", caller=STRANGER, agent="bot").entries) == 2
    with pytest.raises(KaifsError, match="E105"):
        bot.run("log", caller=STRANGER, agent="bot", path=b"secret")
    with pytest.raises(KaifsError, match="E105"):
        bot.run("prune", caller=STRANGER, agent="bot", retention=Retention(keep_last=1))


def test_versions_can_be_listed_by_tag(bot: Desk) -> None:
    seal(bot, "1.1.0", tags=("stable", "x"))
    seal(bot, "1.2.0", tags=("beta",))

    def listed(*tags: str) -> list[str]:
        return [version.version for version in bot.run("list", agent="bot", tags=tags).versions]

    assert listed("stable") == ["1.1.0"]
    assert listed("st*", "beta") == ["1.2.0", "1.1.0"]
    assert listed("nothing") == []
