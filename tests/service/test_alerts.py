"""Who is told of damage: what settings are believed, and what hooks get."""

import json
import os
import time
from pathlib import Path

import pytest

from kaifs.base.errors import AlertSettingsError
from kaifs.service.alert_sender import call_webhook, run_hook
from kaifs.service.alerting import Hook, Webhook, load_settings, send_detached
from kaifs.service.alerts import Alert


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    return folder


def alert(store: Path) -> Alert:
    return Alert(
        event="quarantined",
        agent="bot",
        version="1.0.0",
        reason="it smells",
        time="2026-11-22T20:15:03.000000Z",
        store=str(store),
    )


def script(folder: Path, text: str) -> str:
    path = folder / "hook"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_without_settings_nobody_is_sent(store: Path) -> None:
    assert load_settings(store) is None
    assert send_detached(alert(store)) is None


def test_settings_name_hooks_and_webhooks(store: Path) -> None:
    (store / "alerts.toml").write_text(
        '[[hook]]\ncommand = ["/bin/true", "x"]\ntimeout = 5\n'
        '[[webhook]]\nurl = "https://example.org/x"\nheaders = { Authorization = "Bearer y" }\n'
    )

    found = load_settings(store)

    assert found is not None
    assert found[0].hook == (Hook(command=("/bin/true", "x"), timeout=5),)
    assert found[0].webhook[0].tries == 5


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "unknown = 1",
        "[[hook]]\ncommand = []",
        '[[hook]]\ncommand = "rm"',
        '[[webhook]]\nurl = "file:///etc/passwd"',
        '[[webhook]]\nurl = "http://x"\ntries = 1000000',
        '[[hook]]\ncommand = ["x"]\ntimeout = -1',
        "a = " + "[" * 10_000,
        "#" * 100_000,
    ],
    ids=["no TOML", "unknown", "empty", "text", "scheme", "tries", "timeout", "deep", "long"],
)
def test_settings_that_make_no_sense_are_refused(store: Path, text: str) -> None:
    (store / "alerts.toml").write_text(text)

    with pytest.raises(AlertSettingsError):
        load_settings(store)
    assert send_detached(alert(store)) is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_settings_that_others_may_write_are_not_believed(store: Path, mode: int) -> None:
    path = store / "alerts.toml"
    path.write_text('[[hook]]\ncommand = ["/bin/true"]\n')
    path.chmod(mode)

    with pytest.raises(AlertSettingsError):
        load_settings(store)


def test_settings_that_are_a_link_are_not_believed(store: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text('[[hook]]\ncommand = ["/bin/true"]\n')
    (store / "alerts.toml").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(AlertSettingsError):
        load_settings(store)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_settings_of_somebody_else_are_not_believed(store: Path) -> None:
    path = store / "alerts.toml"
    path.write_text('[[hook]]\ncommand = ["/bin/true"]\n')
    os.chown(path, 4321, 4321)

    with pytest.raises(AlertSettingsError):
        load_settings(store)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_users_hook_is_run_with_the_users_rights(store: Path, tmp_path: Path) -> None:
    """Also by root: else who owns a store could run anything as root."""
    for folder in (store, tmp_path):
        os.chown(folder, 4321, 4321)
    for above in (*tmp_path.parents,):
        if above.stat().st_uid == 0 and "pytest-of" in str(above):
            above.chmod(0o755)
    hook = script(tmp_path, f"id -u > {tmp_path}/who; id -G >> {tmp_path}/who")
    path = store / "alerts.toml"
    path.write_text(f'[[hook]]\ncommand = ["{hook}"]\n')
    os.chown(path, 4321, 4321)

    process = send_detached(alert(store))

    assert process is not None
    assert process.wait(30) == 0
    assert (tmp_path / "who").read_text().split() == ["4321", "4321"]


def test_a_hook_gets_the_alert_and_a_clean_environment(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    hook = script(tmp_path, f"cat > {tmp_path}/told; env > {tmp_path}/env")

    assert run_hook(Hook(command=(hook,)), alert(store))

    told = json.loads((tmp_path / "told").read_text())
    assert told["event"] == "quarantined"
    environment = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert environment["KAIFS_REASON"] == "it smells"
    assert "SECRET" not in environment


def test_a_hook_that_does_not_end_is_killed_with_what_it_started(
    store: Path, tmp_path: Path
) -> None:
    hook = script(tmp_path, "sleep 1000 & sleep 1000")
    begun = time.monotonic()

    assert not run_hook(Hook(command=(hook,), timeout=0.2), alert(store))

    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("command", ["/nonexistent/hook", "/etc/passwd"])
def test_a_hook_that_cannot_be_run_has_failed_and_nothing_else(store: Path, command: str) -> None:
    assert not run_hook(Hook(command=(command,)), alert(store))


def test_a_webhook_that_nobody_answers_is_tried_so_often_and_given_up(store: Path) -> None:
    nobody = Webhook(url="http://127.0.0.1:1/x", tries=3, backoff=0.01, timeout=1)

    assert not call_webhook(nobody, alert(store))
