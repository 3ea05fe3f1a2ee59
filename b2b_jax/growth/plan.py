"""GrowthPlan: everything that growth decides, as data, before any array is touched."""

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from b2b_jax.axes import Axes, AxisTable, normed_axes, shapes
from b2b_jax.growth import depth as depth_orders
from b2b_jax.growth.depth import NamedDepth
from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.mappings import Mapping, Split
from b2b_jax.growth.maps import IndexMap
from b2b_jax.growth.width import along

Method = Literal["fpi", "aki", "direct_copy", "random"]
AkiScope = Literal["all", "hidden"]
NormPosition = Literal["pre", "post"]
NormRule = Literal["plain", "mean_pad", "calibrated"]
FORMAT = 2
READABLE = (1, 2)
"""Format 1 had plain norms, equal splits and no noise."""


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
        norm: how norms meet a width that is no multiple: "plain" leaves them, "mean_pad" fills up
            with the mean (exact for pre-norm models), "calibrated" chose what to repeat.
        split: how the weights of a copied entry are parted among its copies.
        noise: standard deviation of what is added to one copy and taken from the other, in units of
            the parameter's initialisation.
        norm_scales: path of a norm's scale -> calibrated factor of every source layer, or of itself
            if it is not stacked.
        residual_axes: axes of the residual stream that no parameter outside the layers names.
    """

    source: dict[str, Any]
    target: dict[str, Any]
    axes: AxisTable
    source_sizes: dict[str, int]
    target_sizes: dict[str, int]
    maps: dict[str, IndexMap]
    method: Method
    mapping: Mapping
    depth: NamedDepth | Literal["explicit"]
    aki_scope: AkiScope
    seed: int
    norm_position: NormPosition
    library_version: str
    norm: NormRule = "plain"
    split: Split = "equal"
    noise: float = 0.0
    norm_scales: dict[str, list[float]] = field(default_factory=dict)
    residual_axes: list[str] = field(default_factory=list)

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
        return frozenset(everywhere - outside - {"layers", *self.residual_axes})

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

    def unread_entries(self, path: str) -> np.ndarray:
        """Entries of a kernel that read what is zero after growth, so that they may start fresh.

        Returns:
            bool, of a shape that broadcasts against the parameter in the target.
        """
        axes = self.axes[path]
        unread = np.zeros((1,) * len(axes.names), bool)
        if axes.role == "kernel":
            for dimension, name in enumerate(axes.names):
                if axes.divided[dimension] and name in self.maps:
                    unread = unread | along(self.maps[name].is_mean, dimension, len(axes.names))
        return unread

    @cached_property
    def normed_axes(self) -> tuple[str, ...]:
        """Axes that some norm takes the statistics of."""
        return normed_axes(self.axes)

    @cached_property
    def listed_axes(self) -> frozenset[str]:
        """Axes whose entries the input or the output names: vocabulary, positions, classes."""
        tables = self.axes.values()
        indexed = {name for axes in tables for name in axes.indexed}
        produced = {name for axes in tables for name in axes.produces}
        consumed = {name for axes in tables for name in axes.consumes}
        return frozenset((indexed | (produced - consumed - set(self.normed_axes))) - {"layers"})

    @property
    def copies(self) -> bool:
        """Whether parameters are made of copies that share what they were: FPI and AKI."""
        return self.method in ("fpi", "aki")

    @cached_property
    def copied_axes(self) -> tuple[str, ...]:
        """Width axes with entries that are copied more than once; none of fresh models."""
        if not self.copies:
            return ()
        return tuple(
            name
            for name, grown in self.maps.items()
            if name != "layers" and name not in self.listed_axes and (grown.counts > 1).any()
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
        for name in self.normed_axes:
            counts = self.maps[name].counts
            if not self.maps[name].is_even:
                reasons.append(
                    f"{name} {self.source_sizes[name]} -> {self.target_sizes[name]} copies some "
                    f"entries {counts.min()} and some {counts.max()} times, which shifts the "
                    "statistics of every LayerNorm"
                    + (", as little as calibration could" if self.norm == "calibrated" else "")
                )
        for name, grown in self.maps.items():
            if (grown.counts == 0).any():
                reasons.append(f"{name}: {int((grown.counts == 0).sum())} entries have no copy")
            elif name in self.listed_axes and not grown.starts_with_identity:
                reasons.append(f"{name} renumbers or mixes the entries that the source has")
        factors = {factor for factors in self.norm_scales.values() for factor in factors}
        if factors - {1.0} and all(self.maps[name].is_even for name in self.normed_axes):
            reasons.append("calibrated factors change the norms")
        order = self.maps.get("layers")
        if order is not None and not order.is_identity and self.depth != "identity":
            again = (
                "runs layers again" if (order.counts > 1).any() else "runs them in another order"
            )
            reasons.append(
                f"layers {order.source_size} -> {order.target_size} by {self.depth} {again}"
            )
        return tuple(reasons)

    def width_step(self, target: dict[str, Any]) -> "GrowthPlan":
        """The first of the two steps of Algorithm 1: the plan without its new layers.

        Args:
            target: the config of the widened model, of the source's depth, as JSON values.
        """
        layers = self.source_sizes["layers"]
        return dataclasses.replace(
            self,
            target=target,
            target_sizes=self.target_sizes | {"layers": layers},
            maps=self.maps | {"layers": IndexMap(np.arange(layers), layers)},
            depth="stack",
        )

    @property
    def is_exact(self) -> bool:
        """Whether the grown model is predicted to compute the source's function."""
        return not self.why_inexact

    def rule(self, path: str) -> str:
        """What happens to one parameter, in words."""
        from b2b_jax.growth.describe import rule

        return rule(self, path)

    def describe(self) -> str:
        """The plan as a text table: one line per parameter, then what to expect."""
        from b2b_jax.growth.describe import describe

        return describe(self)

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives an equal plan back."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["axes"] = {
            path: {"axes": str(axes), "init_std": axes.init_std} for path, axes in self.axes.items()
        }
        fields["maps"] = {name: grown.to_dict() for name, grown in self.maps.items()}
        return json.dumps({"format": FORMAT, **fields})

    @classmethod
    def from_json(cls, text: str) -> "GrowthPlan":
        """Read a plan that `to_json` wrote.

        Raises:
            GrowthError: if the text is no plan or one of another format.
        """
        from b2b_jax.growth.stored import check_stored

        try:
            fields = json.loads(text)
            found = fields.pop("format")
            if found not in READABLE:
                raise GrowthError(
                    f"growth plan of format {found}; this version reads {READABLE}. "
                    f"It was written by b2b_jax {fields.get('library_version', 'unknown')}"
                )
            fields["axes"] = {
                path: Axes.parse(entry["axes"], init_std=entry["init_std"])
                for path, entry in fields["axes"].items()
            }
            fields["maps"] = {
                name: IndexMap.from_dict(entry) for name, entry in fields["maps"].items()
            }
            return check_stored(cls(**fields))
        except GrowthError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GrowthError(f"this is not a growth plan: {error!r}") from error
