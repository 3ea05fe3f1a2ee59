"""One program at a time in the folder of a run (effects: files)."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from b2b_jax.models import ConfigError
from b2b_jax.train.processes import is_first

FILE = "lock"


@contextlib.contextmanager
def sole_user(run_dir: str | Path) -> Iterator[None]:
    """Keep other programs from training the same run meanwhile; the first process does it for all.

    The system holds the lock for the process, so that none is left when that is killed. Where
    folders cannot be locked, as in some mounted buckets and on Windows, nothing is kept away.

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
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{run_dir}: another process is training this run. Wait for it or stop it, or "
                "choose another run_dir"
            ) from None
        except OSError:  # no locks on this disk
            pass
        yield
