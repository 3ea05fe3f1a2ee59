"""One program at a time in the folder of a run (effects: files)."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from b2b_jax.models import ConfigError
from b2b_jax.train.processes import is_first
from b2b_jax.train.writers import Reporter

FILE = "lock"
PATIENCE = 120.0
"""Seconds to wait for a lock: a network disk keeps that of a machine which died for a while."""


@contextlib.contextmanager
def sole_user(run_dir: str | Path, *, reporter: Reporter) -> Iterator[None]:
    """Keep other programs from training the same run meanwhile; the first process does it for all.

    The system holds the lock for the process, so that none is left when that is killed. Where
    folders cannot be locked, as in some mounted buckets and on Windows, nothing is kept away.

    Args:
        run_dir: the folder; made if missing.
        reporter: told when there is something to wait for.

    Raises:
        ConfigError: if the run is being trained.
    """
    try:
        import fcntl
    except ImportError:
        fcntl = None
    if fcntl is None or not is_first():
        yield
        return
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a") as file:
        try:
            _wait_for(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB), folder, reporter)
        except BlockingIOError:
            raise ConfigError(
                f"{run_dir}: another process is training this run. Wait for it or stop it, or "
                "choose another run_dir"
            ) from None
        except OSError:  # no locks on this disk
            pass
        yield


def _wait_for(lock: Any, folder: Path, reporter: Reporter) -> None:
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
        time.sleep(1)
