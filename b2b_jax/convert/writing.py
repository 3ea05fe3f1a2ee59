"""Writing Hugging Face folders, whole or not at all (effects: files)."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from b2b_jax.convert.errors import ConvertError
from b2b_jax.convert.files import BIN, CONFIG, SAFE, SAFE_INDEX
from b2b_jax.convert.hf import HfTensor
from b2b_jax.convert.safetensors_writer import write_safetensors

CARRIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)
"""Files that mean the same for a model of another size, and are copied as they are."""
SHARD_BYTES = 5 * 10**9
"""Size above which weights are written in several files."""


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """A folder to fill under a temporary name; it replaces the target when all went well."""
    target = Path(target)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # The old folder goes only when the new one stands in its place.
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class Extras:
    """What a folder holds beside its model.

    Attributes:
        files: files to copy as they are.
        texts: file name -> text of further files to write.
    """

    files: tuple[Path, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()


def carried_files(source: str | Path) -> tuple[Path, ...]:
    """Tokenizer and generation files of a folder."""
    present = (Path(source) / name for name in CARRIED)
    return tuple(file for file in present if file.is_file())


def write_folder(
    target: str | Path,
    config: Mapping[str, Any],
    entries: Sequence[HfTensor],
    arrays: Iterable[np.ndarray],
    *,
    extras: Extras = Extras(),
    shard_bytes: int = SHARD_BYTES,
    weights: str = "safetensors",
) -> None:
    """Write a Hugging Face folder, whole or not at all, one tensor after the other.

    Args:
        target: the folder; replaced if it exists.
        config: the values of config.json.
        entries: what will be written, in order.
        arrays: the values, in the same order; asked for one by one.
        extras: tokenizer, model card and the like.
        shard_bytes: largest size of one safetensors file.
        weights: "safetensors" or "bin".

    Raises:
        ConvertError: if PyTorch is missing for "bin".
    """
    with new_folder(target) as folder:
        _write_json(folder / CONFIG, config)
        for file in extras.files:
            shutil.copyfile(file, folder / file.name)
        for name, text in extras.texts:
            (folder / name).write_text(text, encoding="utf-8")
        if weights == "bin":
            _write_bin(folder / BIN, entries, arrays)
        else:
            _write_shards(folder, entries, iter(arrays), shard_bytes)


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_shards(
    folder: Path, entries: Sequence[HfTensor], arrays: Iterator[np.ndarray], shard_bytes: int
) -> None:
    shards: list[list[HfTensor]] = [[]]
    filled = 0
    for entry in entries:
        size = entry.nbytes
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += size
    if len(shards) == 1:
        write_safetensors(folder / SAFE, entries, arrays)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, shard, arrays)
        weight_map |= {entry.name: name for entry in shard}
    total = sum(entry.nbytes for entry in entries)
    _write_json(folder / SAFE_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_bin(file: Path, entries: Sequence[HfTensor], arrays: Iterable[np.ndarray]) -> None:
    try:
        import torch
    except ImportError as error:
        raise ConvertError(
            "writing PyTorch's own format needs PyTorch (pip install torch)"
        ) from error

    def tensor(array: np.ndarray) -> Any:
        if array.dtype == np.dtype("bfloat16"):
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    torch.save({e.name: tensor(a) for e, a in zip(entries, arrays, strict=True)}, file)
