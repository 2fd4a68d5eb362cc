"""Runs a verb on a store in this process, when no daemon serves it."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from kaifs.base.errors import KaifsError
from kaifs.service.alerts import Alert
from kaifs.service.context import Context, this_caller
from kaifs.service.steps import (
    Commit,
    Item,
    OnOutput,
    OnProgress,
    Output,
    Progress,
    Sign,
    Signature,
    Signer,
    Source,
    Want,
    Work,
)
from kaifs.service.switching import finish_due_backups
from kaifs.service.verbs import VERBS, Verb
from kaifs.store.store import Store, StoreOptions
from kaifs.tree.forest import Forest

# A verb in a user's process logs nothing unless the program that it is in wants that.
logging.getLogger("kaifs").addHandler(logging.NullHandler())


def run_embedded(
    store_path: Path,
    verb: str,
    params: msgspec.Struct,
    *,
    source: Source | None = None,
    on_progress: OnProgress | None = None,
    on_output: OnOutput | None = None,
    signer: Signer | None = None,
) -> Any:
    """Open the store, run *verb*, make it durable, close, and return the verb's result.

    Whatever ends it early, an error or Ctrl-C, leaves the store as it was.

    Raises:
        KaifsError: the verb refuses, or the store cannot be opened.
    """
    found = VERBS[verb]
    store = Store.open(store_path, options=StoreOptions(accept_loss=found.alone))
    context = Context(store, Forest(store), this_caller(), alert=_alert)
    try:
        if not found.alone:
            _finish_what_was_left(context)
        result = run(context, found, params, source, on_progress, on_output, signer)
        if found.changes:
            store.commit()
    except BaseException:
        store.abandon()
        if found.changes and not found.alone:
            # What the verb made durable on its way, and is nobody's now. If that fails as
            # well, the next open does it.
            with suppress(KaifsError):
                _finish_what_was_left(context)
        raise
    finally:
        store.close(commit=False)
    return result


def _alert(alert: Alert) -> None:
    from kaifs.service.alerting import alert_embedded

    alert_embedded(alert)


def _finish_what_was_left(context: Context) -> None:
    """Mend once what a process that died has left, also for a verb that only reads."""
    context.forest.recover()
    finish_due_backups(context)
    if context.store.is_dirty:
        context.store.commit()


def run(
    context: Context,
    verb: Verb,
    params: msgspec.Struct,
    source: Source | None = None,
    on_progress: OnProgress | None = None,
    on_output: OnOutput | None = None,
    signer: Signer | None = None,
) -> Any:
    """Run *verb* to its end on a store that is open, and return its result."""
    steps = verb.run(context, params)
    try:
        step = next(steps)
        while True:
            answer: Item | None = None
            match step:
                case Want():
                    assert source is not None, "the verb wants a source"
                    # None tells the verb that the source ended before its End.
                    answer = next(source, None)
                case Sign(record=record):
                    assert signer is not None, "the verb wants a signature"
                    answer = Signature(signer(record))
                case Commit():
                    context.store.commit()
                case Work(run=work):
                    work()
                case Progress() if on_progress is not None:
                    on_progress(step)
                case Output(payload=payload) if on_output is not None:
                    on_output(payload)
            step = steps.send(answer)
    except StopIteration as stop:
        return stop.value
    finally:
        steps.close()
