"""Ctrl-C that waits until it can be told to the other processes."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class DeferredInterrupts:
    """Inside ``with``, SIGINT is kept; it is raised where it is listened for, or at the end.

    A process that waits for others cannot be stopped, and Python would raise KeyboardInterrupt right after the wait, in the
    middle of an exchange. Only the main thread gets signals; elsewhere nothing is done.

    >>> import os
    >>> with DeferredInterrupts() as interrupts:
    ...     signal.raise_signal(signal.SIGINT)
    ...     try:
    ...         with interrupts.listen():
    ...             pass
    ...     except KeyboardInterrupt:
    ...         print("heard")
    heard
    """

    def __init__(self) -> None:
        self._before: Any = None
        self._listening = self._pending = False

    def __enter__(self) -> "DeferredInterrupts":
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(before):
            self._before = before
            signal.signal(signal.SIGINT, self._keep)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._raise_pending()
            self._before = None

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Inside, SIGINT comes at once, and the one that was kept first of all."""
        self._listening = True
        try:
            self._raise_pending()
            yield
        finally:
            self._listening = False

    @contextmanager
    def deafen(self) -> Iterator[None]:
        """Inside, SIGINT is kept again, for an exchange in the middle of a computation that listens."""
        before, self._listening = self._listening, False
        try:
            yield
        finally:
            self._listening = before
        if before:
            self._raise_pending()

    def _keep(self, number: int, frame: Any) -> None:
        self._pending = True
        if self._listening:
            self._raise_pending()

    def _raise_pending(self) -> None:
        if self._pending:
            self._pending = False
            self._before(signal.SIGINT, None)
