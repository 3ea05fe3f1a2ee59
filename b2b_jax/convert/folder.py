"""A Hugging Face folder as one thing: open it, read its model, write another (effects: files)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tokenizers import Tokenizer

from b2b_jax.convert.errors import ConvertError
from b2b_jax.convert.files import TensorFile, open_tensors, read_config
from b2b_jax.convert.hf import (
    ReadPiece,
    encode_all,
    layout,
    params_from_hf,
    piece_reader,
    pieces_of,
)
from b2b_jax.convert.hf_config import from_hf, to_hf
from b2b_jax.convert.match import InitMissing, Match, check_ties, match
from b2b_jax.convert.scheme import Scheme
from b2b_jax.convert.writing import SHARD_BYTES, Extras, write_folder
from b2b_jax.models import ModelConfig, build_model
from b2b_jax.tree import flatten, unflatten
from b2b_jax.types import FlatParams, Params


@dataclass(frozen=True)
class HfFolder:
    """An opened Hugging Face folder; weights are read when they are asked for.

    Attributes:
        path: where it is.
        config: our config of its model, with the heads that were asked for.
        values: its config.json.
        tensors: its weights.
        matched: which tensor is which parameter.
    """

    path: Path
    config: ModelConfig
    values: dict[str, Any]
    tensors: TensorFile
    matched: Match

    def params(self) -> Params:
        """All parameters, with the dtypes of the file; missing heads fresh, in float32."""
        check_ties(self.tensors.read, self.matched)
        params = flatten(params_from_hf(self.tensors.read, self.matched))
        return unflatten(params | self.fresh_heads())

    def pieces(self) -> ReadPiece:
        """Single parameters, layer by layer: what growth of large models reads."""
        check_ties(self.tensors.read, self.matched)
        piece, fresh = piece_reader(self.tensors.read, self.matched), self.fresh_heads()
        return lambda path, layer: fresh[path] if path in fresh else piece(path, layer)

    def dtype(self, path: str) -> np.dtype:
        """The dtype that a parameter has in the file."""
        name = self.matched.names[Scheme(self.config).by_path[path][0].name.format(layer=0)]
        return self.tensors.dtype(name)

    def fresh_heads(self) -> FlatParams:
        """The parameters of heads that the file lacks, drawn from a fixed key."""
        wanted = self.matched.missing_heads
        if not wanted:
            return {}
        model = build_model(self.config)
        # Only these leaves are outputs, so the compiler drops the rest of the model.
        drawn = jax.jit(lambda key: {p: flatten(model.init(key))[p] for p in wanted})
        return {path: np.asarray(leaf) for path, leaf in drawn(jax.random.key(0)).items()}

    def notes(self) -> list[str]:
        """What a user should know about how the folder was read."""
        found = []
        for title, names in (
            ("ignored buffers of older versions", self.matched.ignored),
            ("left out, not among the heads asked for", self.matched.left_out),
            ("made fresh, missing in the file", self.matched.missing_heads),
        ):
            if names:
                found.append(f"{self.path}: {title}: {', '.join(names)}")
        return found


def open_folder(
    path: str | Path,
    *,
    heads: tuple[str, ...] | None = None,
    init_missing: InitMissing = "nothing",
) -> HfFolder:
    """Open a Hugging Face folder and check everything that can be checked without reading weights.

    Args:
        path: a folder with config.json and weights.
        heads: output heads wanted instead of those of the config's class.
        init_missing: "head" makes heads fresh that the file lacks.

    Raises:
        ConvertError: lists every reason why it cannot be read.
    """
    path = Path(path)
    values = read_config(path)
    declared = from_hf(values, where=str(path / "config.json"))
    tensors = open_tensors(path)
    matched = match(
        tensors.shapes, declared, where=str(path), heads=heads, init_missing=init_missing
    )
    _check_tokenizer(path, declared)
    return HfFolder(path, matched.cfg, values, tensors, matched)


def _check_tokenizer(path: Path, cfg: ModelConfig) -> None:
    file = path / "tokenizer.json"
    if file.exists():
        try:
            tokens = Tokenizer.from_file(str(file)).get_vocab()
        except Exception as error:  # tokenizers raises bare Exception
            raise ConvertError(f"{file}: holds no tokenizer: {error}") from error
        largest = max(tokens.values(), default=-1)
    elif (path / "vocab.txt").exists():
        file = path / "vocab.txt"
        largest = len(file.read_text(encoding="utf-8").splitlines()) - 1
    else:
        return
    if largest >= cfg.vocab_size:
        raise ConvertError(
            f"{file}: has token ids up to {largest}, but the embedding has {cfg.vocab_size} rows "
            "(vocab_size in config.json); these files do not belong together"
        )


def save_folder(
    path: str | Path,
    cfg: ModelConfig,
    params: Mapping[str, Any],
    *,
    base: Mapping[str, Any] | None = None,
    files: Sequence[Path] = (),
    texts: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    weights: Literal["safetensors", "bin"] = "safetensors",
) -> None:
    """Write parameters as a folder that `transformers` loads; an existing one is replaced whole.

    Args:
        path: the folder.
        cfg: sizes and constants.
        params: nested dict of arrays.
        base: values of a config.json whose other entries are carried over.
        files: tokenizer files and the like, to copy.
        texts: further files, name -> text.
        shard_bytes: largest size of one weight file.
        weights: "safetensors", or "bin" for PyTorch's own format.
    """
    flat = flatten(params)
    entries = layout(cfg, {name: leaf.dtype for name, leaf in flat.items()})
    write_folder(
        path,
        to_hf(cfg, base=base),
        entries,
        encode_all(cfg, entries, pieces_of(params)),
        extras=Extras(tuple(files), tuple((texts or {}).items())),
        shard_bytes=shard_bytes,
        weights=weights,
    )
