"""One program at a time in the folder of a run (effects: files)."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from b2b_jax.models import ConfigError
from b2b_jax.train.processes import is_first, told_by_the_first
from b2b_jax.train.writers import Reporter

FILE = "lock"
PATIENCE = 120.0
"""Seconds to wait for a lock: a network disk keeps that of a machine which died for a while."""


@contextlib.contextmanager
def sole_user(run_dir: str | Path, *, reporter: Reporter) -> Iterator[None]:
    """Keep other programs from training the same run meanwhile; the first process does it for all.

    The system holds the lock for the process, so that none is left when that is killed. Where
    folders cannot be locked, as in some mounted buckets and on Windows, nothing is kept away.
    All processes of the job go on, or are refused, together.

    Args:
        run_dir: the folder; made if missing.
        reporter: told when there is something to wait for.

    Raises:
        ConfigError: if the run is being trained.
    """
    with contextlib.ExitStack() as stack:
        problem = _take(Path(run_dir), stack, reporter) if is_first() else ""
        if problem := told_by_the_first(problem):
            raise ConfigError(problem)
        yield


def _take(folder: Path, stack: contextlib.ExitStack, reporter: Reporter) -> str:
    """Lock a folder until the stack is left; says why it could not be."""
    try:
        import fcntl
    except ImportError:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context((folder / FILE).open("a"))
    try:
        _wait_for(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB), folder, reporter)
    except BlockingIOError:
        return (
            f"{folder}: another process is training this run. Wait for it or stop it, or choose "
            "another run_dir"
        )
    except OSError:  # no locks on this disk
        pass
    return ""


def _wait_for(lock: Callable[[], None], folder: Path, reporter: Reporter) -> None:
    limit, told = time.monotonic() + PATIENCE, False
    while True:
        try:
            lock()
            return
        except BlockingIOError:
            if time.monotonic() > limit:
                raise
        if not told:
            reporter.note(
                f"start: another process is training {folder}; waiting {PATIENCE:.0f} s for it to "
                "end"
            )
            told = True
        _pause()


def _pause() -> None:
    time.sleep(1)
