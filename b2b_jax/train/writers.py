"""What a run leaves behind and shows: metrics.csv, TensorBoard events, progress (effects)."""

import csv
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_LINE_SECONDS = 10.0
Row = Mapping[str, Any]


def metric_columns(depths: Sequence[int], *, copied: Sequence[str] = ()) -> tuple[str, ...]:
    """Columns of metrics.csv.

    Args:
        depths: of the sub-models; none without stage one.
        copied: axes whose copies are watched.
    """
    return (
        "step",
        "stage",
        "depth",
        "loss",
        *(f"loss_depth_{depth}" for depth in depths),
        "heldout_loss",
        "heldout_layers",
        "heldout_submodel_mean",
        *(f"heldout_depth_{depth}" for depth in depths),
        *(f"copy_distance_{axis}" for axis in copied),
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "data_wait",
        "flops_electra",
        "flops_exact",
        "mfu",
        "seconds",
    )


class CsvWriter:
    """Rows of metrics.csv; a resumed run drops the rows after its checkpoint and goes on."""

    def __init__(self, path: Path, columns: Sequence[str], *, keep_through: int) -> None:
        kept: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                rows = csv.DictReader(file)
                # What was watched before and is no more keeps its column, in front of the last.
                before = [name for name in rows.fieldnames or () if name not in columns]
                columns = [*columns[:-1], *before, columns[-1]]
                for row in rows:
                    step, last = row.get("step") or "", row.get(columns[-1])
                    # A line that was cut off by a kill lacks its last column.
                    if step.isdigit() and last is not None and int(step) <= keep_through:
                        kept.append({name: row.get(name) or "" for name in columns})
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            begun = csv.DictWriter(file, columns)
            begun.writeheader()
            begun.writerows(kept)
        os.replace(temporary, path)
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns)

    def write(self, row: Row) -> None:
        """Append one row; missing columns stay empty. It is on disk when this returns."""
        self._writer.writerow({name: _cell(value) for name, value in row.items()})
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cell(value: Any) -> Any:
    return repr(value) if isinstance(value, float) else value


class TensorBoardWriter:
    """The same rows as TensorBoard scalars.

    They are written here and not in a thread of tensorboardX, which a full disk would end with the
    next rows waiting for it.
    """

    def __init__(self, folder: Path, *, keep_through: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        # TensorBoard hides what an earlier sitting wrote from this step on.
        log = event_pb2.SessionLog  # pyright: ignore
        began = event_pb2.Event(step=keep_through + 1, session_log=log(status=log.START))  # pyright: ignore
        self._events.write_event(began)

    def write(self, row: Row) -> None:
        """Write every number of a row; it is on disk when this returns.

        Raises:
            OSError: if the disk is full.
        """
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                event = event_pb2.Event(  # pyright: ignore
                    wall_time=time.time(), step=row["step"], summary=scalar(name, value)
                )
                self._events.write_event(event)
        self._events.flush()

    def close(self) -> None:
        """Close the file."""
        self._events.close()


@runtime_checkable
class Reporter(Protocol):
    """Where a long job says how far it is."""

    def note(self, text: str) -> None:
        """Say something once."""
        ...

    def update(self, done: int, total: int, *, text: str, seconds_left: float | None) -> None:
        """Say how far the job is."""
        ...

    def close(self) -> None:
        """The job is over."""
        ...


class QuietReporter:
    """Says nothing: for the processes of a job that are not the first."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def update(self, done: int, total: int, *, text: str, seconds_left: float | None) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Nothing to take away."""


class TerminalReporter:
    """One live line on a terminal; elsewhere a plain line every few seconds."""

    def __init__(self, title: str, *, console: Console | None = None) -> None:
        self._title = title
        self._console = console or Console(file=sys.stdout)
        self._progress: Progress | None = None
        self._last_line = -PLAIN_LINE_SECONDS

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, done: int, total: int, *, text: str, seconds_left: float | None) -> None:
        """Move the live line, or print one if enough time has passed."""
        left = "--:--" if seconds_left is None else duration(seconds_left)
        if self._console.is_terminal:
            if self._progress is None:
                self._progress = Progress(
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=None),
                    TextColumn("{task.completed}/{task.total}"),
                    TextColumn("{task.fields[text]}"),
                    TextColumn("ETA {task.fields[left]}"),
                    console=self._console,
                    transient=True,
                )
                self._progress.start()
                self._progress.add_task(self._title, total=total, text="", left="--:--")
            task = self._progress.task_ids[0]
            self._progress.update(task, completed=done, total=total, text=text, left=left)
        elif time.monotonic() - self._last_line >= PLAIN_LINE_SECONDS or done >= total:
            self._last_line = time.monotonic()
            self.note(f"{self._title}  {done}/{total}  {text}  ETA {left}")

    def close(self) -> None:
        """Take the live line away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def duration(seconds: float) -> str:
    """Seconds as minutes or hours.

    Example:
        >>> duration(75), duration(3 * 3600 + 120)
        ('1:15', '3:02:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
