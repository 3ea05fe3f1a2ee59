"""Text to compare models on (effects: reads files)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from b2b_jax.data import DataError, TokenizerInfo, heldout_batches, load_prepared, mask_tokens
from b2b_jax.data.tokenizer import load_tokenizer, tokenizer_file, tokenizer_info
from b2b_jax.evaluate.verify import IGNORED_LABEL
from b2b_jax.models import ModelConfig
from b2b_jax.train.saved import SavedModel
from b2b_jax.train.step import HELDOUT_SEED

RANDOM_TOKENS = "random tokens"


@dataclass(frozen=True)
class Sample:
    """A batch for `verify`, and what it is.

    Attributes:
        name: in words.
        batch: ``input_ids`` and, for masked models, ``labels``; padded rows have a mask.
    """

    name: str
    batch: dict[str, Any]

    def halves(self) -> tuple["Sample", "Sample"]:
        """Every other row; a single row is both."""
        rows = len(self.batch["input_ids"])
        starts = (0, 1) if rows > 1 else (0, 0)
        first, second = (
            Sample(self.name, {name: field[start::2] for name, field in self.batch.items()})
            for start in starts
        )
        return first, second


def heldout_sample(saved: SavedModel) -> Sample:
    """The held-out text of a run where it lies prepared, else random ids."""
    run = saved.meta.get("config")
    try:
        if run is not None:
            prepared = load_prepared(saved.meta["data"]["path"])
            rows = next(
                iter(
                    heldout_batches(
                        prepared,
                        sequence_length=run["train"]["sequence_length"],
                        layout="gpt2" if saved.config.is_causal else "bert",
                        batch_size=16,
                        max_batches=1,
                    )
                )
            )
            ids, masked = jnp.asarray(rows["input_ids"]), run["train"]["masked_positions"]
            return Sample("held-out text", _scored(saved.config, ids, prepared.tokenizer, masked))
    except (DataError, KeyError, OSError):
        pass  # the text is gone; what the growth cost can still be seen on random ids
    return random_sample(saved.config)


def source_sample(saved: SavedModel, folders: Sequence[str], *, text: str) -> Sample:
    """A text file if there is one, else what the source was evaluated on.

    Args:
        saved: the source.
        folders: where a tokenizer may lie.
        text: file of plain text, or "".

    Raises:
        DataError: if the text cannot be read.
    """
    if not text:
        return heldout_sample(saved)
    return text_sample(text, tokenizer_folder(folders, [saved]), saved.config)


def tokenizer_folder(folders: Sequence[str], models: Sequence[SavedModel]) -> str:
    """The first folder that holds a tokenizer: given ones, then the prepared data of models.

    Raises:
        DataError: if none does.
    """
    prepared = [saved.meta["data"]["path"] for saved in models if "data" in saved.meta]
    for folder in (*folders, *map(str, prepared)):
        try:
            tokenizer_file(folder)
        except DataError:
            continue
        return str(Path(folder))
    raise DataError(
        f"none of {', '.join((*folders, *map(str, prepared)))} holds a tokenizer.json or "
        "vocab.txt to read the text with; leave --text out to compare without it"
    )


def random_sample(cfg: ModelConfig) -> Sample:
    """Tokens drawn uniformly."""
    length = min(64, cfg.max_position_embeddings - cfg.position_offset)
    ids = np.random.default_rng(0).integers(cfg.vocab_size, size=(8, length))
    return Sample(RANDOM_TOKENS, {"input_ids": ids})


def text_sample(file: str, folder: str, cfg: ModelConfig, *, tokens: int = 128) -> Sample:
    """Rows of a text file, tokenized by the tokenizer of a folder.

    Args:
        file: plain text, UTF-8.
        folder: holds tokenizer.json or vocab.txt.
        cfg: of the model that reads the rows.
        tokens: per row, special ones included.

    Raises:
        DataError: if there is no tokenizer, or it does not suit the model, or no text.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: expected plain text in UTF-8: {error}") from error
    tokenizer = load_tokenizer(folder)
    info = tokenizer_info(tokenizer)
    if info.vocab_size > cfg.vocab_size:
        raise DataError(
            f"{folder}: the tokenizer has {info.vocab_size} tokens, the model {cfg.vocab_size}"
        )
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    length = min(tokens, cfg.max_position_embeddings - cfg.position_offset)
    around = [info.cls_id, info.sep_id]
    special = not cfg.is_causal and min(around) >= 0
    body = length - 2 if special else length
    rows = [ids[start : start + body] for start in range(0, len(ids), body)][:32]
    if not rows:
        raise DataError(f"{file}: holds no text")
    if special:
        rows = [[info.cls_id, *row, info.sep_id] for row in rows]
    width = max(map(len, rows))
    pad = max(info.pad_id, 0)
    batch = np.asarray([row + [pad] * (width - len(row)) for row in rows], np.int32)
    mask = np.asarray([[1] * len(row) + [0] * (width - len(row)) for row in rows], np.int32)
    name = f"{file} ({int(mask.sum())} tokens)"
    fields = {"input_ids": batch, "attention_mask": mask}
    if "mlm" in cfg.heads and info.mask_id >= 0:
        fields |= _scored(cfg, jnp.asarray(batch), info, max(1, round(0.15 * width)))
    return Sample(name, fields)


def _scored(cfg: ModelConfig, ids: Any, tokenizer: TokenizerInfo, num_masked: int) -> dict:
    """Ids, and for a masked model the labels of masked ones."""
    if cfg.is_causal:
        return {"input_ids": ids}
    draw = jax.jit(mask_tokens, static_argnames=("num_masked", "tokenizer"))
    key = jax.random.key(HELDOUT_SEED)
    masked = draw(key, ids, num_masked=num_masked, tokenizer=tokenizer)
    rows = np.arange(len(ids))[:, None]
    labels = (
        jnp.full(ids.shape, IGNORED_LABEL)
        .at[rows, masked.positions]
        .set(jnp.where(masked.weights > 0, masked.labels, IGNORED_LABEL))
    )
    return {"input_ids": masked.input_ids, "labels": labels}
