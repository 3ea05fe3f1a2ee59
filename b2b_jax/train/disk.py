"""A full disk, whoever meets it first, told in one message (effects: files)."""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from b2b_jax.train.checkpoint import finished_steps

WORDS = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


class DiskFull(OSError):
    """Something could not be written because a disk has no room for it."""


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or one that led to it, comes from a full disk.

    Orbax puts words of its own around those of the system, so that the number is lost.

    Example:
        >>> is_full_disk(OSError(28, "No space left on device"))
        True
        >>> is_full_disk(OSError(2, "No such file or directory"))
        False
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DiskFull) or any(words in str(cause) for words in WORDS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextlib.contextmanager
def naming_full_disk(run_dir: str | Path, *others: str | Path) -> Iterator[None]:
    """Say of a full disk how much room there is, what is kept and what to do.

    Args:
        run_dir: folder of the run.
        others: further folders that it writes to.

    Raises:
        DiskFull: with all that.
    """
    # It stays where a disk was full: what it leaves out comes while the process ends.
    before, sys.excepthook = sys.excepthook, _without_late_writes
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            sys.excepthook = before
            raise
        free = [f"{folder} {megabytes_free(folder):.1f} MB" for folder in (run_dir, *others)]
        steps = finished_steps(run_dir)
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "no checkpoint is there"
        raise DiskFull(
            f"{run_dir}: the disk is full (free: {', '.join(free)}); {kept}. Make room and repeat "
            "the command"
        ) from error
    else:
        sys.excepthook = before


def _without_late_writes(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Leave out what TensorStore's threads print, one trace per array, when a save was given up."""
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, trace)


def megabytes_free(folder: str | Path) -> float:
    """Room on the disk of a folder, which need not exist yet."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / 1e6
