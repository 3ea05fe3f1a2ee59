"""GrowthPlan: everything that growth decides, as data, before any array is touched."""

import dataclasses
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from b2b_jax.axes import Axes, AxisTable, shapes
from b2b_jax.growth import depth as depth_orders
from b2b_jax.growth import maps as index_maps
from b2b_jax.growth.depth import Depth
from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.maps import IndexMap

Method = Literal["fpi", "aki", "direct_copy", "random"]
AkiScope = Literal["all", "hidden"]
NormPosition = Literal["pre", "post"]
FORMAT = 1
GROWN_AXES = ("layers", "embed", "heads", "mlp")


@runtime_checkable
class GrowableConfig(Protocol):
    """What growth asks of a model config; any model with an axis table can offer it."""

    @property
    def norm_position(self) -> NormPosition:
        """Whether blocks normalise their input or the sum of input and output."""
        ...

    def axis_sizes(self) -> dict[str, int]:
        """Size of every axis that the parameters name."""
        ...

    def axis_table(self) -> AxisTable:
        """Parameter path -> named axes."""
        ...

    def invariants(self) -> dict[str, Any]:
        """Fields that growth cannot change, because the function would change with them."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        ...


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
    depth: Depth
    aki_scope: AkiScope
    seed: int
    norm_position: NormPosition
    library_version: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GrowthPlan) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

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
        if self.method != "fpi":
            grown = any(not grown.is_identity for grown in self.maps.values())
            if grown or self.method == "random":
                reasons.append(f"{self.method} does not preserve the function")
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
            path: {"axes": str(axes), "init_std": axes.init_std}
            for path, axes in self.axes.items()
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


def plan_growth(
    source: GrowableConfig,
    target: GrowableConfig,
    *,
    method: Method = "aki",
    mapping: index_maps.Mapping = "cyclic",
    depth: Depth = "stack",
    aki_scope: AkiScope = "all",
    seed: int = 0,
) -> GrowthPlan:
    """Plan the growth of every parameter of ``source`` into ``target`` (bert2BERT, section 3).

    Args:
        source: config of the trained model.
        target: config of the larger model.
        method: "fpi" (Eq. 7 to 13), "aki" (Eq. 14 to 16), "direct_copy" (source in the leading
            corner, the rest fresh) or "random" (all fresh).
        mapping: how new width entries choose what to copy: "cyclic", "balanced" or "uniform".
        depth: "stack" (Algorithm 1), "interpolate", or "identity" (pre-norm models only).
        aki_scope: "all" or "hidden"; see `GrowthPlan`.
        seed: of random maps and fresh parameters.

    Raises:
        GrowthError: lists every reason why the target cannot be reached.

    Example:
        >>> from b2b_jax.models import preset
        >>> plan = plan_growth(preset("bert-12x384"), preset("bert-base"), method="fpi")
        >>> plan.is_exact, plan.maps["heads"].counts.tolist()
        (True, [2, 2, 2, 2, 2, 2])
    """
    found = _option_problems(method, mapping, depth, aki_scope)
    found += _size_problems(source, target)
    sizes = source.axis_sizes(), target.axis_sizes()
    if depth == "identity" and source.norm_position == "post":
        if sizes[0].get("layers") != sizes[1].get("layers"):
            found.append(
                "depth 'identity' is for pre-norm models: a post-norm block whose projections are "
                "zero still normalises its input twice; use 'stack' or 'interpolate'"
            )
    if found:
        raise GrowthError("This growth cannot be done:\n  " + "\n  ".join(found))
    grown: dict[str, IndexMap] = {}
    for name, size in sizes[0].items():
        if name == "layers":
            grown[name] = depth_orders.ORDERS[depth](size, sizes[1][name])
        else:
            rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
            grown[name] = index_maps.MAPPINGS[mapping](size, sizes[1][name], rng)
    return GrowthPlan(
        source=source.to_dict(),
        target=target.to_dict(),
        axes=dict(target.axis_table()),
        source_sizes=sizes[0],
        target_sizes=sizes[1],
        maps=grown,
        method=method,
        mapping=mapping,
        depth=depth,
        aki_scope=aki_scope,
        seed=seed,
        norm_position=source.norm_position,
        library_version=_library_version(),
    )


def _library_version() -> str:
    try:
        return version("b2b_jax")
    except PackageNotFoundError:
        return "unknown"


def _option_problems(method: str, mapping: str, depth: str, aki_scope: str) -> list[str]:
    options = {
        "method": (method, get_args(Method)),
        "mapping": (mapping, get_args(index_maps.Mapping)),
        "depth": (depth, get_args(Depth)),
        "aki_scope": (aki_scope, get_args(AkiScope)),
    }
    return [
        f"{name}: found {value!r}, expected one of {valid}"
        for name, (value, valid) in options.items()
        if value not in valid
    ]


def _size_problems(source: GrowableConfig, target: GrowableConfig) -> list[str]:
    found = []
    before, after = source.invariants(), target.invariants()
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            found.append(
                f"{name}: the source has {before.get(name)!r}, the target {after.get(name)!r}; "
                "growth keeps it, set them equal"
            )
    sizes: tuple[Mapping[str, int], Mapping[str, int]] = (
        source.axis_sizes(),
        target.axis_sizes(),
    )
    for name in sorted(sizes[0].keys() & sizes[1].keys()):
        small, large = sizes[0][name], sizes[1][name]
        if name == "head_dim" and small != large:
            embed = sizes[1]["embed"]
            heads = f"{embed // small}" if embed % small == 0 else f"hidden_size / {small}"
            found.append(
                f"head_dim: {small} -> {large}; heads are copied whole, so it stays. "
                f"Set the target's num_attention_heads to {heads}"
                + ("" if embed % small == 0 else f" (hidden_size {embed} is no multiple)")
            )
        elif small > large:
            found.append(f"{name} shrinks: {small} -> {large}; set at least {small}")
        elif small != large and name != "head_dim" and name not in GROWN_AXES:
            found.append(f"{name}: {small} -> {large}; only {', '.join(GROWN_AXES)} can grow")
    return found
