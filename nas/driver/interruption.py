"""An interruption of the driver from within."""

from __future__ import annotations

import signal
import threading


def interrupt_main_thread() -> None:
    """Interrupt the driver from another thread: the session makes SIGTERM an interrupt.

    The system may hand a signal for the process to any of its threads. Then the main one would sleep on.
    """
    main = threading.main_thread().ident
    assert main is not None, "the main thread has started"
    signal.pthread_kill(main, signal.SIGTERM)
