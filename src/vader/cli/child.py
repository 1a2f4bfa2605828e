"""`python -m vader.cli.child`: a `vader` command that ends with the process that started it, even if that was killed.

Its standard input is a pipe that its parent holds and never writes to: when the parent is gone, however it went, the
pipe ends. On Linux the system itself is asked too, which nothing in this process can delay.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from threading import Thread

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def end_with_parent() -> None:
    """From here on, this process lives no longer than its parent. Nothing is saved in the end: as after `kill -9`."""
    pipe = os.dup(sys.stdin.fileno())
    Thread(target=_watch, args=(pipe,), daemon=True).start()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    end_with_parent()
    from vader.cli import main

    sys.exit(main())
