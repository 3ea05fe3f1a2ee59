"""GrowthPlan: everything that growth decides, as data, before any array is touched."""

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from b2b_jax.axes import Axes, AxisTable, shapes
from b2b_jax.growth import depth as depth_orders
from b2b_jax.growth import maps as index_maps
from b2b_jax.growth.depth import NamedDepth
from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.maps import IndexMap

Method = Literal["fpi", "aki", "direct_copy", "random"]
AkiScope = Literal["all", "hidden"]
NormPosition = Literal["pre", "post"]
FORMAT = 1


@dataclass(frozen=True, eq=False)
class GrowthPlan:
    """How every parameter of a target model comes from a source model.

    Hashable, so that it can be a static argument of `jax.jit`.

    Attributes:
        source: the source config as JSON values.
        target: the target config as JSON values.
        axes: parameter path -> named axes (with the target's initialisation).
        source_sizes: axis name -> size in the source.
        target_sizes: axis name -> size in the target.
        maps: axis name -> index map, for every axis, grown or not.
        method: "fpi", "aki", "direct_copy" or "random".
        mapping: how the width maps were drawn.
        depth: how the layer order was made.
        aki_scope: "all" is bert2BERT's Eq. 16; "hidden" takes whole heads and neurons from above.
        seed: of random maps and of fresh parameters.
        norm_position: where the blocks normalise.
        library_version: the package that made the plan.
    """

    source: dict[str, Any]
    target: dict[str, Any]
    axes: AxisTable
    source_sizes: dict[str, int]
    target_sizes: dict[str, int]
    maps: dict[str, IndexMap]
    method: Method
    mapping: index_maps.Mapping
    depth: NamedDepth | Literal["explicit"]
    aki_scope: AkiScope
    seed: int
    norm_position: NormPosition
    library_version: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GrowthPlan) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @cached_property
    def _identity(self) -> str:
        return self.to_json()

    @cached_property
    def source_shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter path -> shape in the source."""
        return shapes(self.axes, self.source_sizes)

    @cached_property
    def target_shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter path -> shape in the target."""
        return shapes(self.axes, self.target_sizes)

    @cached_property
    def hidden_axes(self) -> frozenset[str]:
        """Axes that live inside a layer: every parameter that names them is stacked over layers."""
        everywhere = {name for axes in self.axes.values() for name in axes.names}
        outside = {
            name
            for axes in self.axes.values()
            if "layers" not in axes.indexed
            for name in axes.names
        }
        return frozenset(everywhere - outside - {"layers"})

    def donated_axes(self, path: str) -> tuple[str, ...]:
        """Axes of a parameter whose new entries AKI takes from the upper layer."""
        axes = self.axes[path]
        if self.method != "aki" or "layers" not in axes.indexed:
            return ()
        if axes.role not in ("kernel", "bias"):
            return ()
        if self.aki_scope == "hidden":
            candidates = tuple(name for name in axes.names if name in self.hidden_axes)
        else:
            candidates = axes.produces
        return tuple(name for name in candidates if not self.maps[name].is_identity)

    @cached_property
    def silent_layers(self) -> np.ndarray:
        """Target layers whose output projections are zero: bool ``[target layers]``."""
        if self.depth != "identity" or "layers" not in self.maps:
            return np.zeros(self.target_sizes.get("layers", 0), bool)
        return depth_orders.silent_layers(self.maps["layers"])

    def is_silenced(self, path: str) -> bool:
        """Whether a parameter writes to the residual stream and is zeroed in silent layers."""
        axes = self.axes[path]
        return (
            "layers" in axes.indexed
            and axes.role in ("kernel", "bias")
            and not self.hidden_axes.issuperset(axes.produces)
            and bool(self.silent_layers.any())
        )

    @cached_property
    def why_inexact(self) -> tuple[str, ...]:
        """Reasons why the grown model will not compute the source's function; empty if it will."""
        reasons = []
        # Without a layer above, or an axis to fill from there, AKI is FPI.
        donates = self.source_sizes.get("layers", 1) > 1 and any(map(self.donated_axes, self.axes))
        if self.method != "fpi" and (self.method != "aki" or donates):
            grown = any(not grown.is_identity for grown in self.maps.values())
            if grown or self.method == "random":
                reasons.append(f"{self.method} does not preserve the function")
            if self.method != "aki":  # the others copy nothing twice
                return tuple(reasons)
        normed = {
            name
            for axes in self.axes.values()
            if axes.role == "norm_scale"
            for name in axes.produces
        }
        for name in sorted(normed):
            counts = self.maps[name].counts
            if not self.maps[name].is_even:
                reasons.append(
                    f"{name} {self.source_sizes[name]} -> {self.target_sizes[name]} copies some "
                    f"entries {counts.min()} and some {counts.max()} times, which shifts the "
                    "statistics of every LayerNorm"
                )
        order = self.maps.get("layers")
        if order is not None and not order.is_identity and self.depth != "identity":
            reasons.append(
                f"layers {order.source_size} -> {order.target_size} by {self.depth} "
                "runs layers again"
            )
        return tuple(reasons)

    @property
    def is_exact(self) -> bool:
        """Whether the grown model is predicted to compute the source's function."""
        return not self.why_inexact

    def rule(self, path: str) -> str:
        """What happens to one parameter, in words."""
        if self.method == "random":
            return "fresh"
        axes = self.axes[path]
        grown = [name for name in dict.fromkeys(axes.names) if not self.maps[name].is_identity]
        if self.method == "direct_copy":
            return f"leading corner, rest fresh ({', '.join(grown)})" if grown else "copy"
        parts = []
        if grown:
            parts.append("gather " + ", ".join(grown))
        divided = [
            name
            for name, is_divided in zip(axes.names, axes.divided, strict=True)
            if is_divided and name in grown
        ]
        if divided:
            parts.append("divide by copies of " + ", ".join(divided))
        donated = self.donated_axes(path)
        if donated:
            parts.append(f"new {', '.join(donated)} from layer l+1")
        if self.is_silenced(path):
            parts.append(f"zero in layers {np.flatnonzero(self.silent_layers).tolist()}")
        return "; ".join(parts) or "copy"

    def describe(self) -> str:
        """The plan as a text table: one line per parameter, then what to expect."""
        rows = [("parameter", "source", "target", "rule")] + [
            (path, str(self.source_shapes[path]), str(self.target_shapes[path]), self.rule(path))
            for path in self.axes
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]])
            for row in rows
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        if "layers" in self.maps and self.method in ("fpi", "aki"):
            lines.append(f"layer order: {self.maps['layers'].indices.tolist()}")
        lines.append(
            "exact: the grown model computes the source's function"
            if self.is_exact
            else "not exact: " + "; ".join(self.why_inexact)
        )
        return "\n".join(lines)

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives an equal plan back."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["axes"] = {
            path: {"axes": str(axes), "init_std": axes.init_std} for path, axes in self.axes.items()
        }
        fields["maps"] = {
            name: {"source_size": grown.source_size, "indices": grown.indices.tolist()}
            for name, grown in self.maps.items()
        }
        return json.dumps({"format": FORMAT, **fields})

    @classmethod
    def from_json(cls, text: str) -> "GrowthPlan":
        """Read a plan that `to_json` wrote.

        Raises:
            GrowthError: if the text is no plan or one of another format.
        """
        try:
            fields = json.loads(text)
            found = fields.pop("format")
            if found != FORMAT:
                raise GrowthError(
                    f"growth plan of format {found}; this version reads {FORMAT}. "
                    f"It was written by b2b_jax {fields.get('library_version', 'unknown')}"
                )
            fields["axes"] = {
                path: Axes.parse(entry["axes"], init_std=entry["init_std"])
                for path, entry in fields["axes"].items()
            }
            fields["maps"] = {
                name: IndexMap(np.asarray(entry["indices"], np.int32), entry["source_size"])
                for name, entry in fields["maps"].items()
            }
            return cls(**fields)
        except GrowthError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GrowthError(f"this is not a growth plan: {error!r}") from error
