"""What could come next on a command line: what the scripts of `kaifs completion` ask for.

Everything is read off the parsers; what a user gave names to is asked of the store.
The answer is a line for each candidate, a tab and its description behind it, and a
last line that says what the shell does besides.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kaifs.service.complete import Result

ONLY: Final = ":only"
NO_SPACE: Final = ":nospace"
"""A candidate is only the beginning of a word."""
FILES: Final = ":files"
FOLDERS: Final = ":folders"

LOCK_WAIT_S: Final = 0.3
"""Seconds to wait for whoever has the store: somebody sits before the keyboard."""
_PLACES: Final = {
    "STORE": FOLDERS,
    "MNT": FOLDERS,
    "[STORE] MNT": FOLDERS,
    "DIR": FOLDERS,
    "DIR|-": FOLDERS,
    "FILE": FILES,
    "CMD": FILES,
    "KEY": FILES,
}
"""Metavars for which the shell looks at its own files."""


@dataclass
class Answer:
    """Candidates with their descriptions, and what the shell does besides."""

    words: dict[str, str] = field(default_factory=dict)
    directive: str = ONLY

    def add(self, words: Iterable[str], start: str, text: str = "") -> None:
        """Add those of *words* that begin with *start*."""
        self.words.update({word: text for word in words if word.startswith(start)})

    def lines(self) -> list[str]:
        """Return what the shell reads."""
        words = [f"{word}\t{text}" if text else word for word, text in self.words.items()]
        return [*words, self.directive]


def print_candidates(parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Print what could be the last of *words*. Whatever goes wrong, nothing is printed."""
    with contextlib.suppress(Exception):
        sys.stdout.write("\n".join(find_candidates(parser, words or [""]).lines()) + "\n")
    return 0


def find_candidates(parser: argparse.ArgumentParser, words: list[str]) -> Answer:
    """Return what could be the last of *words*, which come behind the command's name."""
    place = _Place(parser)
    *before, current = words
    for word in before:
        place.take(word)
    answer = Answer()
    if place.option is not None:
        _complete_value(place, place.option, current, answer)
    elif current.startswith("-") and not place.is_plain:
        _complete_option(place, current, answer)
    else:
        action = place.positional()
        if action is not None:
            _complete_value(place, action, current, answer)
    return answer


class _Place:
    """Where a command line has got to."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser
        self.option: argparse.Action | None = None
        """An option that wants a value, which comes next."""
        self.is_plain = False
        """Whether `--` has been there: nothing is an option any more."""
        self.verb = ""
        self.agent = ""
        """The first agent that was named."""
        self.store: str | None = None
        self._count = 0
        """Positional arguments of the parser that have been there."""

    def take(self, word: str) -> None:
        """Go past *word*."""
        if self.option is not None:
            self._take_value(self.option, word)
            self.option = None
        elif word == "--" and not self.is_plain:
            self.is_plain = True
        elif word.startswith("-") and len(word) > 1 and not self.is_plain:
            name, has_value, value = word.partition("=")
            action = self.find_option(name)
            if action is not None and has_value:
                self._take_value(action, value)
            elif action is not None and action.nargs != 0:
                self.option = action
        else:
            self._take_positional(word)

    def _take_positional(self, word: str) -> None:
        action = self.positional()
        if isinstance(action, argparse._SubParsersAction):
            below = action.choices.get(word)
            if below is not None:
                self.parser = below
                self._count = 0
                self.verb = self.verb or word
                learn = getattr(below, "learn", None)
                if learn is not None:
                    learn()
            return
        if action is not None and not self.agent and "AGENT" in str(action.metavar):
            self.agent = word
        self._count += 1

    def _take_value(self, action: argparse.Action, value: str) -> None:
        if action.dest == "store":
            self.store = value

    def find_option(self, name: str) -> argparse.Action | None:
        """Return the option that *name*, or what it is the beginning of, means."""
        options = self.options()
        found = [option for option in options if option.startswith(name)]
        if name in options:
            return options[name]
        return options[found[0]] if len(found) == 1 else None

    def options(self) -> dict[str, argparse.Action]:
        """Return the options that can be given here."""
        return {
            name: action
            for action in self.parser._actions
            if action.help != argparse.SUPPRESS
            for name in action.option_strings
        }

    def positional(self) -> argparse.Action | None:
        """Return the positional argument that comes next."""
        actions = [one for one in self.parser._actions if not one.option_strings]
        if self._count < len(actions):
            return actions[self._count]
        last = actions[-1] if actions else None
        return last if last is not None and last.nargs in ("*", "+") else None


def _complete_option(place: _Place, current: str, answer: Answer) -> None:
    name, has_value, value = current.partition("=")
    options = place.options()
    if has_value:
        action = place.find_option(name)
        if action is not None:
            found = Answer()
            _complete_value(place, action, value, found)
            answer.words = {f"{name}={word}": text for word, text in found.words.items()}
            answer.directive = found.directive
        return
    for option, action in options.items():
        # A long name says more; short ones are shown where there is nothing else.
        if option.startswith("--") or not any(
            one.startswith("--") for one in action.option_strings
        ):
            answer.add([option], current, _first_sentence(action.help))


def _complete_value(place: _Place, action: argparse.Action, current: str, answer: Answer) -> None:
    if isinstance(action, argparse._SubParsersAction):
        for choice in action._choices_actions:
            answer.add([choice.dest], current, _first_sentence(choice.help))
        return
    if action.choices is not None:
        answer.add(map(str, action.choices), current)
        return
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if action.dest == "store":
        metavar = "STORE"
    if metavar in _PLACES:
        answer.directive = _PLACES[metavar]
    elif metavar == "AGENT":
        answer.add(_ask(place).agents, current)
    elif metavar == "LABEL" and place.verb == "rollback":
        answer.add(_ask(place, place.agent).labels, current)
    elif metavar in ("REF", "ID", "AGENT@LABEL", "ID|AGENT@LABEL"):
        _complete_reference(place, metavar, current, answer)


def _complete_reference(place: _Place, metavar: str, current: str, answer: Answer) -> None:
    agent, at, _ = current.partition("@")
    has_versions = metavar != "ID"
    if at and "/" not in agent:
        if has_versions:
            labels = _ask(place, agent).labels
            answer.add([f"{agent}@{label}" for label in labels], current)
        return
    known = _ask(place)
    if metavar == "REF":
        answer.add(known.agents, current)
    if metavar != "AGENT@LABEL":
        names = [name for _, name in known.snapshots]
        answer.add((name for name in names if names.count(name) == 1), current, "snapshot")
        if "/" in current or not answer.words:
            answer.add((f"{one}/@snapshots/{name}" for one, name in known.snapshots), current)
    if has_versions and not answer.words:
        answer.add((f"{one}@" for one in known.agents), current)
        if answer.words:
            answer.directive = NO_SPACE
    elif metavar == "REF" and answer.words.keys() == {current}:
        # The agent is there: what could come is one of its versions.
        answer.add([f"{current}@{label}" for label in _ask(place, current).labels], current)


def _ask(place: _Place, agent: str | None = None) -> Result:
    """Return the names that there are in the store; none if it cannot be had at once."""
    from kaifs.api.access import find_daemon, store_path
    from kaifs.service.complete import Params

    path = store_path(Path(place.store).expanduser() if place.store else None)
    params = Params(agent=agent)
    if find_daemon(path) is not None:
        from kaifs.control.client import call

        answer: Result = call(path, "complete", params)
        return answer
    from kaifs.service.context import Context, this_caller
    from kaifs.service.embedded import run
    from kaifs.service.verbs import VERBS
    from kaifs.store.store import Store
    from kaifs.tree.forest import Forest

    store = Store.open(path, wait_s=LOCK_WAIT_S)
    try:
        found: Result = run(Context(store, Forest(store), this_caller()), VERBS["complete"], params)
        return found
    finally:
        store.close(commit=False)


def _first_sentence(text: str | None) -> str:
    return (text or "").partition(";")[0].replace("%%", "%")
