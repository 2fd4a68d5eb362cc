"""Which process a pid means, and waiting for its end."""

import os
import signal
import subprocess

from kaifs.linux.processes import (
    ProcessId,
    captured_stderr,
    identify,
    is_running,
    send_signal,
    wait_end,
)


def test_a_process_is_running_until_it_ends_also_as_a_zombie() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        process = identify(child.pid)
        assert process is not None
        assert is_running(process)
        assert not wait_end(process, 0)

        send_signal(process, signal.SIGKILL)

        assert wait_end(process, 10)
        assert not is_running(process)


def test_a_pid_that_means_another_process_by_now_is_not_signalled() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        former = ProcessId(child.pid, started=1)

        send_signal(former, signal.SIGKILL)

        assert wait_end(former, 0)
        assert not is_running(former)
        assert identify(child.pid) is not None
        child.communicate()
    assert child.returncode == 0


def test_stderr_is_captured_below_python() -> None:
    with captured_stderr() as text:
        os.write(2, b"from C\n")
        assert text() == "from C"
