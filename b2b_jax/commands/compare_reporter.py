"""Progress of a comparison: one line for all of it, the runs' own words in their logs (effects)."""

import time
from pathlib import Path

from b2b_jax.train.writers import Reporter


class LogReporter:
    """Writes what a step of the comparison says to a file, nothing to the terminal."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, text: str) -> None:
        """Write a line."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    def update(self, done: int, total: int, *, text: str, seconds_left: float | None) -> None:
        """Say nothing: metrics.csv has it."""

    def close(self) -> None:
        """Nothing to take away."""


class CompareReporter:
    """Sends the words of the run that trains to its log, and its progress to the terminal.

    The time that is left is that of the whole comparison: of the runs to come at the FLOPs per
    second of the runs that this sitting has finished, compiling and evaluating included.
    """

    def __init__(self, outer: Reporter) -> None:
        self._outer = outer
        self._log: LogReporter | None = None
        self._name = ""
        self._run_flops = self._left = 0.0
        self._finished_flops = self._finished_seconds = 0.0
        self._began = time.monotonic()
        self._updates = 0

    def expect(self, flops: float) -> None:
        """Say how much there is to do in this sitting."""
        self._left = flops

    def begin(self, name: str, *, flops: float, log: Path) -> None:
        """A run begins."""
        self._name, self._run_flops, self._log = name, flops, LogReporter(log)
        self._began, self._updates = time.monotonic(), 0

    def end(self) -> None:
        """The run is over, whatever came of it."""
        if self._updates:  # not if it was finished before
            self._left -= self._run_flops
            self._finished_flops += self._run_flops
            self._finished_seconds += time.monotonic() - self._began
        self._log = None

    def quiet(self, log: Path) -> Reporter:
        """A reporter for a step that only writes to a log."""
        return LogReporter(log)

    def note(self, text: str) -> None:
        """Say something once: of a run in its log, else on the terminal."""
        if self._log is None:
            self._outer.note(text)
            return
        self._log.note(text)
        if " finished" in text or " stopped" in text or text.startswith("start: continues"):
            self._outer.note(f"{self._name}: {text.partition(': ')[2]}")

    def update(self, done: int, total: int, *, text: str, seconds_left: float | None) -> None:
        """Say how far the run is, and when everything will be done."""
        self._updates += 1
        if self._finished_flops:
            pace = self._finished_seconds / self._finished_flops
            here = self._run_flops * (1 - done / total)
            seconds_left = pace * (here + max(self._left - self._run_flops, 0.0))
        else:
            seconds_left = None
        self._outer.update(done, total, text=f"{self._name}: {text}", seconds_left=seconds_left)

    def close(self) -> None:
        """A run is over; the live line stays for the next."""
