"""What a checkpoint holds, read and compared with what was written (effects: files)."""

import contextlib
import errno
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import jax
import orbax.checkpoint as ocp

from b2b_jax.train.checksums import damaged, leaf_names

FORMAT = 2
READS = (1, 2)
"""Formats that this version reads; 1 has no checksums."""
NOT_THE_FILES = (jax.errors.JaxRuntimeError, MemoryError, PermissionError)
"""What reading may raise although the files are as they were: no memory, no network, no right."""
OF_THE_FILES = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
"""What the system says of files that are missing; everything else, of a disk that is away, of too
many open files, may pass. Readers raise without a number for files that are cut off."""
NOT_THE_FILES_WORDS = re.compile(
    r"\b(PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED)\b"
)
"""The same in the words of TensorStore, which makes a ValueError of everything."""


class CheckpointError(ValueError):
    """A folder does not hold the checkpoint that was asked for."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is there, but its files are cut off, missing or changed."""


def checkpoint_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The JSON values of one checkpoint.

    Raises:
        DamagedCheckpoint: if they cannot be read.
        CheckpointError: if another version of the package wrote them.
    """
    try:
        meta = manager.restore(
            step,
            args=ocp.args.Composite(meta=ocp.args.JsonRestore()),  # pyright: ignore
        )["meta"]
        if not isinstance(meta, dict):
            raise TypeError(f"meta holds a {type(meta).__name__}")
    except NOT_THE_FILES:
        raise
    except Exception as error:  # Orbax raises many kinds for files that are cut off or missing
        kind = CheckpointError if _is_not_the_files(error) else DamagedCheckpoint
        raise kind(_cannot_be_read(manager, step, error)) from error
    if meta.get("format") == FORMAT and meta.pop("sha256", None) != _digest(meta):
        raise DamagedCheckpoint(
            f"{manager.directory}/{step}/meta: has changed since it was written"
        )
    if meta.get("format") not in READS:
        raise CheckpointError(
            f"{manager.directory}/{step}: checkpoint format {meta.get('format')}, this version "
            f"of b2b_jax reads {' and '.join(map(str, READS))}; it was written by "
            f"b2b_jax {meta.get('library_version', 'of an unknown version')}"
        )
    return meta


def restore_items(
    manager: ocp.CheckpointManager, step: int, abstract: Mapping[str, Any]
) -> dict[str, Any]:
    """Read items of a checkpoint and make sure that they are what was written.

    Args:
        manager: of the folder.
        step: which checkpoint.
        abstract: item -> tree of shapes, dtypes and shardings to read it into.

    Raises:
        DamagedCheckpoint: if an item cannot be read, or an array has another checksum than it had.
        CheckpointError: if other arrays were written than are asked for, or the files may be sound
            and cannot be got at.
    """
    sums = checkpoint_meta(manager, step).get("checksums", {})
    wanted: Any = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    try:
        restored = manager.restore(step, args=ocp.args.Composite(**wanted))
    except NOT_THE_FILES:
        raise
    except Exception as error:  # Orbax raises many kinds for files that are cut off or missing
        is_other = _is_of_another_shape(error) and not _has_the_leaves(sums, abstract)
        kind = CheckpointError if is_other or _is_not_the_files(error) else DamagedCheckpoint
        raise kind(_cannot_be_read(manager, step, error)) from error
    items = {name: restored[name] for name in abstract}
    bad = [leaf for name, tree in items.items() for leaf in damaged(tree, sums.get(name))]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DamagedCheckpoint(
            f"{manager.directory}/{step}: the files have changed since they were written: "
            f"{', '.join(bad[:3])}{more}"
        )
    return items


@contextlib.contextmanager
def naming_older(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    """Add to what is damaged which older steps there are and how to get at them.

    They are not read instead: what is grown from, compared or taught by an older model is another
    result, and only a run's own command may decide to train the rest again.

    Raises:
        DamagedCheckpoint: with that.
    """
    try:
        yield
    except DamagedCheckpoint as error:
        older = [str(found) for found in sorted(manager.all_steps()) if found < step]
        way = (
            f"older here: {', '.join(older)}; repeat the b2b train of this run, which sets the "
            "damaged one aside and trains again from the newest that is sound"
            if older
            else "no older one is here; make this folder again"
        )
        raise DamagedCheckpoint(f"{error} ({way})") from error


def _cannot_be_read(manager: ocp.CheckpointManager, step: int, error: Exception) -> str:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{manager.directory}/{step}: cannot be read: {first_line}"


def _is_not_the_files(error: BaseException) -> bool:
    """Whether the files may be as they were, and could not be got at this time."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno not in OF_THE_FILES:
            return True
        cause = cause.__cause__ or cause.__context__
    return bool(NOT_THE_FILES_WORDS.search(str(error)))


def _has_the_leaves(sums: Mapping[str, Mapping[str, Any]], abstract: Mapping[str, Any]) -> bool:
    """Whether the checkpoint once held what is asked for, whatever its files say by now."""
    return all(
        name in sums and sums[name].keys() == set(leaf_names(tree))
        for name, tree in abstract.items()
    )


def _is_of_another_shape(error: Exception) -> bool:
    """Whether Orbax complains of what it was asked for, not of the files."""
    words = str(error)
    return any(sign in words for sign in ("structure", "not compatible", "mismatch"))


def sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with the format, the version of the package, and a digest of all of them."""
    written_by = {"format": FORMAT, "library_version": version("b2b_jax")}
    values = {**json.loads(json.dumps(meta)), **written_by}
    return {**values, "sha256": _digest(values)}


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
