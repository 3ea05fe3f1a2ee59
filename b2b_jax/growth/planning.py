"""Deciding on a growth: from two configs to a `GrowthPlan`, or to every reason why not."""

import zlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol, get_args, runtime_checkable

import numpy as np

from b2b_jax.axes import AxisTable
from b2b_jax.growth import depth as depth_orders
from b2b_jax.growth import maps as index_maps
from b2b_jax.growth.depth import Depth, NamedDepth
from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.maps import IndexMap
from b2b_jax.growth.plan import AkiScope, GrowthPlan, Method, NormPosition

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
        depth: "stack" (Algorithm 1), "interpolate", "middle", "identity" (pre-norm models only), or
            for every target layer the source layer that it copies.
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
    if seed < 0:
        found.append(f"seed: found {seed}, expected at least 0")
    found += _size_problems(source, target)
    sizes = source.axis_sizes(), target.axis_sizes()
    deeper = sizes[0].get("layers") != sizes[1].get("layers")
    if depth == "identity" and source.norm_position == "post" and deeper:
        found.append(
            "depth 'identity' is for pre-norm models: a post-norm block whose projections are "
            "zero still normalises its input twice; use 'stack' or 'interpolate'"
        )
    if found:
        raise GrowthError("This growth cannot be done:\n  " + "\n  ".join(found))
    grown: dict[str, IndexMap] = {}
    for name, size in sizes[0].items():
        if name == "layers":
            grown[name] = depth_orders.layer_order(depth, size, sizes[1][name])
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
        depth=depth if isinstance(depth, str) else "explicit",
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


def _option_problems(method: str, mapping: str, depth: Depth, aki_scope: str) -> list[str]:
    options = {
        "method": (method, get_args(Method)),
        "mapping": (mapping, get_args(index_maps.Mapping)),
        "depth": (depth if isinstance(depth, str) else "stack", get_args(NamedDepth)),
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
