"""Keeping idle cores awake: the kernel's PM QoS by /dev/cpu_dma_latency.

While the file is open with a 0 in it no core enters a sleep from which it takes
time to wake. That costs power, on all cores, so it is held only while it pays.
Source: Documentation/power/pm_qos_interface.rst.
"""

import os
import struct
from pathlib import Path
from typing import Final

DEVICE: Final = Path("/dev/cpu_dma_latency")


class AwakeCores:
    """A request to the kernel that cores stay awake; given up with `release` or the process."""

    def __init__(self) -> None:
        self._fd = -1

    @property
    def is_held(self) -> bool:
        """Whether cores are kept awake by this."""
        return self._fd >= 0

    def hold(self) -> None:
        """Keep cores awake from now on.

        Raises:
            OSError: the device is missing, or only root may.
        """
        if self._fd < 0:
            fd = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, struct.pack("=i", 0))
            except OSError:
                os.close(fd)
                raise
            self._fd = fd

    def release(self) -> None:
        """Let cores sleep."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
