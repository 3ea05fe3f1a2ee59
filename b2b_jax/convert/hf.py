"""Hugging Face tensors <-> our parameters: pure functions from dict to dict."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from b2b_jax.convert.match import Match, Read
from b2b_jax.convert.scheme import Scheme
from b2b_jax.convert.tables import Tensor
from b2b_jax.models import ModelConfig
from b2b_jax.tree import flatten, unflatten
from b2b_jax.types import FlatParams, Params

ReadPiece = Callable[[str, int | None], np.ndarray]
"""Reads one parameter of ours: path, and layer where it is stacked over layers."""


def piece_reader(read: Read, matched: Match) -> ReadPiece:
    """A function that reads single parameters of ours, layer by layer, out of a file."""
    scheme = Scheme(matched.cfg)

    def piece(path: str, layer: int | None) -> np.ndarray:
        tensor, _ = scheme.by_path[path]
        array = read(matched.names[tensor.name.format(layer=layer)])
        return scheme.decode(tensor, array)[path]

    return piece


def params_from_hf(read: Read, matched: Match) -> Params:
    """All parameters but the missing heads, with the dtypes of the file, as numpy arrays.

    Args:
        read: reads one tensor by its name in the file; each is read once.
        matched: what `match` found.

    Returns:
        nested dict; layers are stacked.
    """
    scheme, flat = Scheme(matched.cfg), {}
    for tensor in scheme.tensors:
        if not set(tensor.paths).isdisjoint(matched.missing_heads):
            continue
        for name, layer in scheme.names(tensor):
            pieces = scheme.decode(tensor, read(matched.names[name]))
            for path, piece in pieces.items():
                if layer is None:
                    flat[path] = np.ascontiguousarray(piece)
                    continue
                if layer == 0:
                    shape = (matched.cfg.num_hidden_layers, *piece.shape)
                    flat[path] = np.empty(shape, piece.dtype)
                flat[path][layer] = piece
    return unflatten(flat)


@dataclass(frozen=True)
class HfTensor:
    """One tensor to write: what is known before its values are.

    Attributes:
        name: its full name in the file.
        shape: its shape in the file.
        dtype: numpy dtype.
        tensor: which entry of the tables.
        layer: which layer, where it exists once per layer.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    tensor: Tensor
    layer: int | None

    @property
    def nbytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def layout(cfg: ModelConfig, dtypes: Mapping[str, Any]) -> list[HfTensor]:
    """Every tensor that the file of a model will hold, in order.

    Args:
        cfg: the model.
        dtypes: our path -> dtype.
    """
    scheme = Scheme(cfg)
    return [
        HfTensor(
            name=scheme.full_names[name],
            shape=scheme.hf_shapes[name],
            dtype=np.dtype(dtypes[tensor.paths[0]]),
            tensor=tensor,
            layer=layer,
        )
        for tensor in scheme.tensors
        for name, layer in scheme.names(tensor)
    ]


def encode_all(cfg: ModelConfig, entries: list[HfTensor], piece: ReadPiece) -> Iterator[np.ndarray]:
    """The values of tensors, one after the other, made when they are asked for."""
    scheme = Scheme(cfg)
    for entry in entries:
        pieces = {path: piece(path, entry.layer) for path in entry.tensor.paths}
        yield scheme.encode(entry.tensor, pieces)


def pieces_of(params: Mapping[str, Any]) -> ReadPiece:
    """Single parameters, layer by layer, of a nested dict."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    return lambda path, layer: flat[path] if layer is None else flat[path][layer]


def params_to_hf(params: Mapping[str, Any], cfg: ModelConfig) -> FlatParams:
    """The tensors of a Hugging Face file: full name -> contiguous numpy array.

    Tied tensors are left out, as the library itself leaves them out.

    Args:
        params: nested dict of arrays.
        cfg: their config.

    Example:
        >>> import jax
        >>> from b2b_jax.models import build_model, preset
        >>> cfg = preset("bert-tiny").replace(num_hidden_layers=1)
        >>> tensors = params_to_hf(build_model(cfg).init(jax.random.key(0)), cfg)
        >>> tensors["bert.encoder.layer.0.intermediate.dense.weight"].shape
        (512, 128)
    """
    dtypes = {path: np.asarray(leaf).dtype for path, leaf in flatten(params).items()}
    entries = layout(cfg, dtypes)
    arrays = encode_all(cfg, entries, pieces_of(params))
    return {entry.name: array for entry, array in zip(entries, arrays, strict=True)}
