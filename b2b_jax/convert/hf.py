"""Hugging Face tensors <-> our parameters: pure functions from dict to dict, driven by tables."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from b2b_jax.axes import AxisTable, shapes
from b2b_jax.convert.errors import ConvertError
from b2b_jax.convert.hf_config import architecture_of
from b2b_jax.convert.tables import HEADLESS, IGNORED, OLD_NAMES, PREFIX, Tensor, tensors, ties
from b2b_jax.models import ModelConfig
from b2b_jax.models.config import HEADS
from b2b_jax.tree import TreeDifference, flatten, unflatten
from b2b_jax.types import FlatParams, Params

Read = Callable[[str], np.ndarray]
"""Reads one tensor of a file by the name that it has there."""
ReadPiece = Callable[[str, int | None], np.ndarray]
"""Reads one parameter of ours: path, and layer where it is stacked over layers."""
InitMissing = Literal["nothing", "head"]


@dataclass(frozen=True)
class Scheme:
    """How the parameters of one model lie in a Hugging Face file.

    Attributes:
        cfg: the model.
    """

    cfg: ModelConfig

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor, once per layer still in one entry."""
        return tensors(self.cfg)

    @cached_property
    def table(self) -> AxisTable:
        """Our path -> named axes."""
        return self.cfg.axis_table()

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our path -> shape; stacked parameters without the layers."""
        whole = shapes(self.table, self.cfg.axis_sizes())
        return {path: shape[self.is_stacked(path) :] for path, shape in whole.items()}

    @cached_property
    def _matrices(self) -> dict[str, tuple[int, ...]]:
        """Our path -> the shape that the parameter has as a vector or matrix."""
        found = {}
        for path, axes in self.table.items():
            stacked = self.is_stacked(path)
            rows = len(axes.indexed) - stacked + len(axes.consumes)
            shape = self.shapes[path]
            width = math.prod(shape[rows:])
            found[path] = (math.prod(shape[:rows]), width) if rows else (width,)
        return found

    @cached_property
    def by_path(self) -> dict[str, tuple[Tensor, int]]:
        """Our path -> the tensor that holds it, and which of its parts."""
        return {
            path: (tensor, part)
            for tensor in self.tensors
            for part, path in enumerate(tensor.paths)
        }

    @cached_property
    def full_names(self) -> dict[str, str]:
        """Every name without prefix -> the name that the model's class writes."""
        prefix = "" if architecture_of(self.cfg) in HEADLESS.values() else PREFIX[self.cfg.family]
        return {
            name: name if tensor.head not in ("", "pooler") else prefix + name
            for tensor in self.tensors
            for name, _ in self.names(tensor)
        }

    def is_stacked(self, path: str) -> bool:
        """Whether a parameter has one entry per layer."""
        return self.table[path].indexed[:1] == ("layers",)

    def names(self, tensor: Tensor) -> list[tuple[str, int | None]]:
        """The names of a tensor without prefix, and the layer of each."""
        if not tensor.is_stacked:
            return [(tensor.name, None)]
        layers = range(self.cfg.num_hidden_layers)
        return [(tensor.name.format(layer=layer), layer) for layer in layers]

    @cached_property
    def hf_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every name without prefix -> the shape in the file, in the order of the file."""
        found = {}
        for tensor in self.tensors:
            *rows, width = self._matrices[tensor.paths[0]]
            shape = (*rows, width * len(tensor.paths))
            shape = shape[::-1] if tensor.layout == "linear" else shape
            found |= dict.fromkeys((name for name, _ in self.names(tensor)), shape)
        return found

    def decode(self, tensor: Tensor, array: np.ndarray) -> dict[str, np.ndarray]:
        """Take one tensor of a file apart into parameters of ours (of one layer)."""
        array = array.T if tensor.layout == "linear" else array
        parts = np.split(array, len(tensor.paths), axis=-1)
        return {
            path: part.reshape(self.shapes[path])
            for path, part in zip(tensor.paths, parts, strict=True)
        }

    def encode(self, tensor: Tensor, pieces: Mapping[str, Any]) -> np.ndarray:
        """Put parameters of ours (of one layer) together into one tensor of a file, contiguous."""
        parts = [np.asarray(pieces[p]).reshape(self._matrices[p]) for p in tensor.paths]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        return np.ascontiguousarray(array.T if tensor.layout == "linear" else array)


@dataclass(frozen=True)
class Match:
    """Which tensor of a file is which.

    Attributes:
        cfg: the model that the file holds.
        names: name without prefix, as it is called today -> name in the file.
        ignored: names in the file that are known to be no parameters.
        left_out: names in the file that belong to heads that were not asked for.
        missing_heads: our paths that the file lacks and that are to be made fresh.
    """

    cfg: ModelConfig
    names: dict[str, str]
    ignored: tuple[str, ...]
    left_out: tuple[str, ...]
    missing_heads: tuple[str, ...]


def plain_name(name: str) -> str:
    """A tensor's name as it is called today, without the encoder's prefix.

    Example:
        >>> plain_name("bert.embeddings.LayerNorm.gamma")
        'embeddings.LayerNorm.weight'
    """
    for prefix in PREFIX.values():
        name = name.removeprefix(prefix)
    for pattern, replacement in OLD_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def match(
    found: Mapping[str, tuple[int, ...]],
    cfg: ModelConfig,
    *,
    where: str,
    heads: tuple[str, ...] | None = None,
    init_missing: InitMissing = "nothing",
) -> Match:
    """Find every tensor of a model among those of a file, strictly.

    Args:
        found: name in the file -> shape.
        cfg: what config.json says.
        where: the file, for messages.
        heads: output heads that are wanted instead of those of the config's class; tensors of other
            heads are left out.
        init_missing: whether absent heads are an error or made fresh.

    Raises:
        ConvertError: lists every missing, unexpected and misshapen tensor.
    """
    wanted = cfg if heads is None else cfg.replace(heads=heads).validate()
    plain: dict[str, str] = {}
    twice: list[str] = []
    for name in found:
        other = plain.setdefault(plain_name(name), name)
        twice += [f"{name}: the same tensor as {other}"] * (other != name)
    ignored = {p for p in plain if any(re.fullmatch(pattern, p) for pattern in IGNORED)}
    headless = heads is None and cfg.heads == ("pooler",)
    if headless and not any(name.startswith("pooler.") for name in plain):
        # The class comes with and without a pooler, and config.json does not say which.
        wanted = wanted.replace(heads=())
    scheme = Scheme(wanted)
    for copy, original in ties(wanted).items():
        if original not in plain and copy in plain:
            plain[original] = plain.pop(copy)
    expected = scheme.hf_shapes
    tied = ties(wanted)
    others = Scheme(cfg.replace(heads=HEADS[cfg.family])).hf_shapes.keys() | ties(
        cfg.replace(heads=HEADS[cfg.family])
    )
    left_out = set() if heads is None else {p for p in plain if p in others - expected.keys()}
    left_out -= tied.keys()
    head_of = {name: t.head for t in scheme.tensors for name, _ in scheme.names(t)}
    absent = expected.keys() - plain.keys()
    fresh = {name for name in absent if head_of[name]} if init_missing == "head" else set()
    problems = TreeDifference(
        missing=tuple(sorted(scheme.full_names[name] for name in absent - fresh)),
        unexpected=tuple(
            sorted(
                [
                    plain[name]
                    for name in plain.keys() - expected.keys() - tied.keys() - ignored - left_out
                ]
                + twice
            )
        ),
        wrong_shape=tuple(
            f"{plain[name]}: found {tuple(found[plain[name]])}, expected {shape}"
            for name, shape in expected.items()
            if name in plain and tuple(found[plain[name]]) != shape
        ),
    )
    if problems:
        hint = ""
        if absent and all(head_of[name] for name in absent - fresh):
            hint = "\nTo make missing heads fresh, pass --init-missing head."
        raise ConvertError(f"{where}: the tensors do not fit config.json.\n{problems}{hint}")
    return Match(
        cfg=wanted,
        names={name: plain[name] for name in (*expected, *tied) if name in plain},
        ignored=tuple(sorted(plain[name] for name in ignored)),
        left_out=tuple(sorted(plain[name] for name in left_out)),
        missing_heads=tuple(
            path for t in scheme.tensors if t.head and t.name in fresh for path in t.paths
        ),
    )


def check_ties(read: Read, matched: Match) -> None:
    """Make sure that tensors which ours hold once are copies of each other in the file.

    Raises:
        ConvertError: names those that differ; a decoder of its own is not supported.
    """
    untied = [
        f"{matched.names[copy]} differs from {matched.names[original]}"
        for copy, original in ties(matched.cfg).items()
        if copy in matched.names
        and original in matched.names
        and not np.array_equal(read(matched.names[copy]), read(matched.names[original]))
    ]
    if untied:
        raise ConvertError("an untied decoder is not supported:\n  " + "\n  ".join(untied))


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
