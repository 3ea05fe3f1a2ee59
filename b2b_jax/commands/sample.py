"""Text to compare models on (effects: reads files)."""

from collections.abc import Mapping, Sequence
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
HELDOUT = "held-out text"


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
    try:
        if "config" in saved.meta:
            train = saved.meta["config"]["train"]
            ids, tokenizer = _heldout_rows(saved, tokens=train["sequence_length"], rows=16)
            scored = _scored(saved.config, ids, tokenizer, train["masked_positions"])
            return Sample(HELDOUT, scored)
    except (DataError, KeyError, OSError):
        pass  # the text is gone; what the growth cost can still be seen on random ids
    return random_sample(saved.config)


def _heldout_rows(saved: SavedModel, *, tokens: int, rows: int) -> tuple[Any, TokenizerInfo]:
    prepared = load_prepared(saved.meta["data"]["path"])
    batches = heldout_batches(
        prepared,
        sequence_length=tokens,
        layout="gpt2" if saved.config.is_causal else "bert",
        batch_size=rows,
        max_batches=1,
    )
    return jnp.asarray(next(iter(batches))["input_ids"]), prepared.tokenizer


def plain_sample(
    saved: SavedModel, folders: Sequence[str], *, text: str, tokens: int, rows: int
) -> Sample:
    """Text with nothing masked: a text file if there is one, else the held-out text of a run.

    Args:
        saved: the model that reads it.
        folders: where a tokenizer may lie.
        text: file of plain text, or "".
        tokens: per row, special ones included; no more than the model has positions for.
        rows: at most.

    Raises:
        DataError: if the text cannot be read, or there is none.
    """
    if text:
        folder = tokenizer_folder(folders, [saved])
        fields, _ = _text_rows(text, folder, saved.config, tokens=tokens)
        fields = {name: field[:rows] for name, field in fields.items()}
        return Sample(_named(text, fields), fields)
    if "data" not in saved.meta:
        raise DataError(
            f"{folders[0]}: only a run of b2b train has held-out text, and this is none; say what "
            "to read with --text FILE"
        )
    try:
        ids, _ = _heldout_rows(saved, tokens=tokens, rows=rows)
    except (DataError, OSError) as error:
        raise DataError(
            f"{folders[0]}: its held-out text is gone ({error}); say what to read with --text FILE"
        ) from error
    return Sample(HELDOUT, {"input_ids": ids})


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
        "vocab.txt to read the text with; put one there, or leave --text out"
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
    fields, info = _text_rows(file, folder, cfg, tokens=tokens)
    name, batch = _named(file, fields), fields["input_ids"]
    if "mlm" in cfg.heads and info.mask_id >= 0:
        masked = max(1, round(0.15 * batch.shape[1]))
        fields |= _scored(cfg, jnp.asarray(batch), info, masked)
    return Sample(name, fields)


def _named(file: str, fields: Mapping[str, np.ndarray]) -> str:
    return f"{file} ({int(fields['attention_mask'].sum())} tokens)"


def _text_rows(
    file: str, folder: str, cfg: ModelConfig, *, tokens: int
) -> tuple[dict[str, Any], TokenizerInfo]:
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
    return {"input_ids": batch, "attention_mask": mask}, info


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
