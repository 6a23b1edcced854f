"""Ctrl-C and SIGTERM during training: noticed at once, obeyed between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from compress.core.errors import LostProcess


@contextmanager
def stop_between_steps(*, alone: bool = True) -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event that the loop reads between two steps, so no checkpoint holds half a step.

    Args:
        alone: no other process waits for this one's next message. A decode process that is lost after the signal then
            belongs to the stop (a scheduler signals decode processes too), and LostProcess becomes KeyboardInterrupt.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except LostProcess:
        if not (alone and stop.is_set()):
            raise
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
