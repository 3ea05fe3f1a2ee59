"""Ctrl-C and SIGTERM as a request to stop between two steps (effects: signals)."""

import signal
import threading
from types import FrameType, TracebackType

EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130


class StopRequest:
    """While active, the first SIGINT or SIGTERM is remembered; a second one acts as usual.

    One within another tells the outer one too, so that several runs in a row stop with the first.

    Attributes:
        exit_code: 0 until asked to stop, then 75 (SIGTERM) or 130 (Ctrl-C).
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._before: dict[int, signal.Handlers | None] = {}

    def __enter__(self) -> "StopRequest":
        # Python lets only the main thread set handlers; elsewhere signals act as usual.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.getsignal(number)  # pyright: ignore
                signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
        outer = self._before.get(number)
        self._restore()
        if isinstance(getattr(outer, "__self__", None), StopRequest) and callable(outer):
            outer(number, frame)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
