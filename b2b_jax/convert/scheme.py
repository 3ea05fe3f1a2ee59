"""How the parameters of one model lie in a Hugging Face file: pure, driven by tables."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from b2b_jax.axes import AxisTable, shapes
from b2b_jax.convert.hf_config import architecture_of
from b2b_jax.convert.tables import HEADLESS, PREFIX, Tensor, tensors
from b2b_jax.models import ModelConfig


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
