"""A run's teacher: its parameters on the devices, or its predictions kept on disk (effects)."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from b2b_jax.data import DataError, Prepared
from b2b_jax.train.config import RunConfig
from b2b_jax.train.inherit import Hints, TopLogits
from b2b_jax.train.programs import Programs
from b2b_jax.train.saved import SavedModel
from b2b_jax.train.signals import StopRequest
from b2b_jax.train.writers import Reporter
from b2b_jax.types import Params

CHUNK = 64
"""Steps per file."""
Batches = Callable[[int], Iterator[Mapping[str, np.ndarray]]]


class Teacher:
    """Gives the hints of every step that learns from a teacher.

    With ``inherit.top_k`` the most likely tokens of its predictions are kept, by step: a step's
    batch and masks are functions of the seed alone, so that runs of other sizes and learning rates
    read what the first has made. Ids take two bytes, logits two (float16).

    Args:
        saved: the model to learn from.
        config: of the run.
        programs: of the run.
        prepared: its tokens.
    """

    def __init__(
        self, saved: SavedModel, config: RunConfig, *, programs: Programs, prepared: Prepared
    ) -> None:
        self._config, self._programs = config, programs
        self._saved: SavedModel | None = saved
        self._placed: Params | None = None
        train = config.train
        batches = {
            "teacher": saved.fingerprint,
            "data": prepared.fingerprint,
            "seed": train.seed,
            "batch": [train.batch_size, train.sequence_length, train.masked_positions],
            "top_k": config.inherit.top_k,
            "dtype": config.compute.dtype,
            "chunk": CHUNK,
            "version": version("b2b_jax"),
        }
        name = hashlib.sha256(json.dumps(batches, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(config.inherit.cache_dir) / name
        self._open: tuple[int, dict[str, np.ndarray]] | None = None

    def hints(self, step: int) -> Hints:
        """What the step's program takes besides state and batch.

        Raises:
            DataError: if the cache was damaged since it was made.
        """
        if not self._config.inherit.top_k:
            return self._params()
        chunk, row = divmod(step, CHUNK)
        if self._open is None or self._open[0] != chunk:
            path = self._path(chunk)
            try:
                with path.open("rb") as file, np.load(file) as stored:
                    self._open = (chunk, {name: stored[name] for name in ("ids", "logits")})
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise DataError(
                    f"{path}: cannot be read ({error}); delete it and repeat the command"
                ) from error
        kept = self._open[1]
        put = self._programs.put_whole
        return TopLogits(
            put(kept["ids"][row].astype(np.int32)), put(kept["logits"][row].astype(np.float32))
        )

    def prepare(
        self,
        batches: Batches,
        *,
        first_step: int,
        reporter: Reporter,
        stop: StopRequest,
    ) -> None:
        """Make the part of the cache that is missing, file by file; a later call goes on.

        Args:
            batches: the run's batches from a step on.
            first_step: the next step to train.
            reporter: told how far it is.
            stop: says when to leave it as it is.
        """
        if not self._config.inherit.top_k:
            return
        last = self._config.inherit.steps
        chunks = range(first_step // CHUNK, -(-last // CHUNK))
        missing = [chunk for chunk in chunks if not self._path(chunk).exists()]
        if missing:
            reporter.note(f"teacher: keeping its predictions in {self.folder}/")
        for done, chunk in enumerate(missing):
            # Whole files, whatever the length of this run, so that a longer one can go on.
            self._write(chunk, batches(chunk * CHUNK), stop=stop)
            if stop.exit_code:
                return
            reporter.update(done + 1, len(missing), text="teacher's predictions", seconds_left=None)
        self._placed = self._saved = None  # from here on only its predictions are needed

    def _params(self) -> Params:
        """Its parameters, which the devices hold from the first use on, and the host no more."""
        if self._placed is None:
            assert self._saved is not None
            self._placed, self._saved = self._programs.put_teacher(self._saved.params), None
        return self._placed

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk * CHUNK:08}.npz"

    def _write(
        self,
        chunk: int,
        batches: Iterator[Mapping[str, np.ndarray]],
        *,
        stop: StopRequest,
    ) -> None:
        keep, ids, logits = self._programs.keep_predictions, [], []
        narrow = np.uint16 if self._config.model.vocab_size <= 2**16 else np.uint32
        for step in range(chunk * CHUNK, (chunk + 1) * CHUNK):
            if stop.exit_code:
                return
            rows = self._programs.put(next(batches)["input_ids"])
            top = keep(self._params(), rows, jnp.int32(step))
            ids.append(np.asarray(top.ids, narrow))
            logits.append(np.asarray(top.logits, np.float16))
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(chunk)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")  # other runs may make the same file
        try:
            with temporary.open("wb") as file:
                np.savez(file, ids=np.stack(ids), logits=np.stack(logits))
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        temporary.replace(path)
