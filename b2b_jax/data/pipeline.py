"""Tokens to batches: windows by index, shuffled, a pure function of (seed, step).

Everything is done for a batch at a time; Grain's threads read ahead of the steps.
"""

import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import grain
import numpy as np
from jaxtyping import Int32, Integer

from b2b_jax.data.errors import DataError
from b2b_jax.data.order import shuffled
from b2b_jax.data.prepare import Prepared

Layout = Literal["bert", "gpt2"]
Split = Literal["train", "heldout"]
ENDLESS = 2**50
"""Windows that no run will see."""


class Windows(Sequence[dict[str, np.ndarray]]):
    """Fixed-length windows over a stored token stream, by index.

    BERT windows are ``[CLS]``, T-2 tokens, ``[SEP]``; GPT-2 windows are T tokens.

    The file is read, not mapped: reading what is gone or cut off raises an error that can be told,
    where touching a map ends the process.

    Raises:
        DataError: if the file is not the one that was prepared; also of every window that is read.
    """

    def __init__(self, path: Path, prepared: Prepared, length: int, layout: Layout) -> None:
        self._path, self._info = path, prepared.tokenizer
        self._length, self._layout = length, layout
        self._body = length - 2 if layout == "bert" else length
        try:
            # Makes sure that the file has the length that its first bytes say.
            stored = np.load(path, mmap_mode="r")
            self._tokens, self._dtype, self._offset = len(stored), stored.dtype, stored.offset
            self._file = os.open(path, os.O_RDONLY)
        except (OSError, ValueError, EOFError) as error:
            raise self._unreadable(str(error)) from error
        weakref.finalize(self, os.close, self._file)
        expected = {"train": prepared.train_tokens, "heldout": prepared.heldout_tokens}[path.stem]
        if self._tokens != expected:
            raise self._unreadable(f"found {self._tokens} tokens, expected {expected}")

    def _unreadable(self, reason: str) -> DataError:
        return DataError(
            f"{self._path}: cannot be read ({reason}); delete {self._path.parent} to have it "
            "prepared again: the same text gives the same tokens, and a run goes on with them"
        )

    def __len__(self) -> int:
        return self._tokens // self._body

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:  # pyright: ignore
        return {"input_ids": self.take(np.asarray([int(index)]))[0]}

    def take(self, indices: Integer[np.ndarray, " N"]) -> Int32[np.ndarray, "N T"]:
        """Several windows, as rows.

        Raises:
            DataError: if the file can no longer be read.
        """
        bodies = self._read(indices)
        if self._layout == "gpt2":
            return bodies.astype(np.int32)
        rows = np.empty((len(indices), self._length), np.int32)
        rows[:, 0], rows[:, -1] = self._info.cls_id, self._info.sep_id
        rows[:, 1:-1] = bodies
        return rows

    def _read(self, indices: Integer[np.ndarray, " N"]) -> np.ndarray:
        # Not through a map of the file: where one has been cut off, that ends the process.
        bodies = np.empty((len(indices), self._body), self._dtype)
        size = self._body * self._dtype.itemsize
        to = memoryview(cast(Any, bodies)).cast("B")
        for row, index in enumerate(indices.tolist()):
            try:
                read = os.pread(self._file, size, self._offset + index * size)
            except OSError as error:
                raise self._unreadable(str(error)) from error
            if len(read) < size:
                raise self._unreadable(f"it ends before token {(index + 1) * self._body}")
            to[row * size : (row + 1) * size] = read
        return bodies

    def __repr__(self) -> str:
        return f"Windows({self._path.name}, {self._layout}, {self._length})"


def window_dataset(
    prepared: Prepared, split: Split, *, sequence_length: int, layout: Layout
) -> grain.MapDataset:
    """The windows of a split as a random-access Grain dataset of ``input_ids`` int32 ``[T]``.

    Raises:
        DataError: if the split cannot be read or is shorter than one window, or the tokenizer does
            not fit.
    """
    return grain.MapDataset.source(_windows(prepared, split, sequence_length, layout))


def _windows(prepared: Prepared, split: Split, sequence_length: int, layout: Layout) -> Windows:
    if layout == "bert" and min(prepared.tokenizer.cls_id, prepared.tokenizer.sep_id) < 0:
        raise DataError(f"{prepared.path}: BERT windows need [CLS] and [SEP]; use WordPiece")
    shortest = 3 if layout == "bert" else 1
    if sequence_length < shortest:
        raise DataError(
            f"train.sequence_length: found {sequence_length}, expected at least {shortest} for "
            f"{layout} windows"
        )
    windows = Windows(prepared.path / f"{split}.npy", prepared, sequence_length, layout)
    if not len(windows):
        raise DataError(
            f"{prepared.path}: the {split} split has fewer tokens than one window of "
            f"{sequence_length}; give more text or a smaller train.sequence_length"
        )
    return windows


def train_batches(
    prepared: Prepared,
    *,
    sequence_length: int,
    layout: Layout,
    batch_size: int,
    seed: int,
    start_step: int,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless training batches from a step on.

    Batch n is a function of (seed, n): windows are reshuffled every epoch, and the position in the
    data is the step itself. A process reads its rows of the global batch only, so the number of
    processes changes nothing.

    Args:
        prepared: the tokens.
        sequence_length: T.
        layout: "bert" or "gpt2".
        batch_size: sequences per step over all processes.
        seed: of the order.
        start_step: the first step to give a batch for.
        rows: those to read of every batch; all by default.

    Yields:
        ``{"input_ids": int32 [len(rows), T]}``.

    Raises:
        DataError: if an epoch is smaller than a batch.
    """
    windows = _windows(prepared, "train", sequence_length, layout)
    if len(windows) < batch_size:
        raise DataError(
            f"{prepared.path}: {len(windows)} windows of {sequence_length} tokens are fewer than "
            f"one batch of {batch_size}; give more text or a smaller train.batch_size"
        )
    wanted = np.arange(batch_size) if rows is None else np.asarray(rows)
    batches = grain.MapDataset.source(_Batches(windows, batch_size, wanted, seed))
    # The threads are for disks that are slow to give pages; the work itself needs one.
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)
    iterator = iter(batches.to_iter_dataset(options))
    iterator.set_state({"next_index": start_step})
    return iterator


class _Batches(Sequence[dict[str, np.ndarray]]):
    """Some rows of every batch of an endless order of windows, by step."""

    def __init__(self, windows: Windows, batch_size: int, rows: np.ndarray, seed: int) -> None:
        self._windows, self._batch_size = windows, batch_size
        self._rows, self._seed = rows, seed

    def __len__(self) -> int:
        return ENDLESS // self._batch_size

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:  # pyright: ignore
        positions = int(index) * self._batch_size + self._rows
        picks = shuffled(positions, length=len(self._windows), seed=self._seed)
        return {"input_ids": self._windows.take(picks)}

    def __repr__(self) -> str:
        return f"Batches({self._windows!r}, {len(self._rows)} of {self._batch_size} rows)"


def heldout_batches(
    prepared: Prepared,
    *,
    sequence_length: int,
    layout: Layout,
    batch_size: int,
    max_batches: int,
) -> Iterator[dict[str, np.ndarray]]:
    """The first held-out batches, spread over the whole split, always the same.

    Fewer windows than asked for give fewer batches, and fewer than one batch repeat.

    Yields:
        ``{"input_ids": int32 [batch_size, T]}``.
    """
    windows = _windows(prepared, "heldout", sequence_length, layout)
    total = len(windows)
    wanted = min(max_batches, max(total // batch_size, 1)) * batch_size
    picks = np.arange(wanted) * total // wanted
    for start in range(0, wanted, batch_size):
        yield {"input_ids": windows.take(picks[start : start + batch_size])}
