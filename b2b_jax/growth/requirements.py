"""Reasons why a growth cannot be done: options that do not exist, sizes that cannot be reached."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from b2b_jax.axes import AxisTable
from b2b_jax.growth.calibration import NormCalibration
from b2b_jax.growth.depth import NamedDepth
from b2b_jax.growth.growable import GrowableConfig
from b2b_jax.growth.mappings import Mapping as WidthMapping
from b2b_jax.growth.mappings import Split, mean_pad_epsilon
from b2b_jax.growth.plan import AkiScope, Method, NormPosition, NormRule

OPTIONS: dict[str, Any] = {
    "method": Method,
    "mapping": WidthMapping,
    "depth": NamedDepth,
    "aki_scope": AkiScope,
    "norm": NormRule,
    "split": Split,
    "norm_position": NormPosition,
}
EPSILON = "layer_norm_eps"


def option_problems(**chosen: Any) -> list[str]:
    """What was chosen that is no option."""
    return [
        f"{name}: found {value!r}, expected one of {get_args(OPTIONS[name])}"
        for name, value in chosen.items()
        if value not in get_args(OPTIONS[name])
    ]


def size_problems(source: GrowableConfig, target: GrowableConfig, *, norm: str) -> list[str]:
    """Sizes and constants of the target that growth cannot give."""
    found = []
    sizes = source.axis_sizes(), target.axis_sizes()
    before, after = source.invariants(), target.invariants()
    if norm == "mean_pad" and EPSILON in before and "embed" in sizes[0]:
        widths = sizes[0]["embed"], max(sizes[1]["embed"], sizes[0]["embed"])
        wanted = mean_pad_epsilon(before[EPSILON], *widths)
        if not math.isclose(wanted, after[EPSILON], rel_tol=1e-6):
            found.append(
                f"{EPSILON}: found {after[EPSILON]!r}, expected {wanted!r} for norm='mean_pad', "
                "since entries that are the mean take variance away; set the target's "
                f"{EPSILON} to it"
            )
        before, after = before | {EPSILON: None}, after | {EPSILON: None}
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            found.append(
                f"{name}: the source has {before.get(name)!r}, the target {after.get(name)!r}; "
                "growth keeps it, set them equal"
            )
    for name in sorted(sizes[0].keys() & sizes[1].keys()):
        small, large = sizes[0][name], sizes[1][name]
        if name == "head_dim" and small != large:
            found.append(_head_dim_problem(small, large, sizes[1].get("embed")))
        elif small > large:
            found.append(f"{name} shrinks: {small} -> {large}; set at least {small}")
        elif small < 1:
            found.append(f"{name}: found {small}, expected at least 1")
    return found


def _head_dim_problem(small: int, large: int, embed: int | None) -> str:
    problem = f"head_dim: {small} -> {large}; heads are copied whole, so it stays. "
    if embed is None:
        return problem + "Grow the number of heads instead"
    if embed % small == 0:
        return problem + f"Set the target's num_attention_heads to {embed // small}"
    return problem + (
        f"Set the target's num_attention_heads to hidden_size / {small} "
        f"(hidden_size {embed} is no multiple)"
    )


def depth_problems(source: GrowableConfig, target: GrowableConfig, *, depth: Any) -> list[str]:
    """What does not suit the way in which layers are to be added."""
    deeper = source.axis_sizes().get("layers") != target.axis_sizes().get("layers")
    if depth != "identity" or source.norm_position != "post" or not deeper:
        return []
    return [
        "depth 'identity' is for pre-norm models: a post-norm block whose projections are "
        "zero still normalises its input twice; use 'stack' or 'interpolate'"
    ]


def norm_problems(
    source: GrowableConfig,
    sizes: Mapping[str, tuple[int, int]],
    normed: tuple[str, ...],
    *,
    norm: NormCalibration | str,
    method: str,
) -> list[str]:
    """What does not suit the way in which norms are to meet an uneven width.

    Args:
        source: config of the source.
        sizes: axis name -> size in source and target.
        normed: the axes that norms take statistics of.
        norm: the rule, or the calibration.
        method: how parameters are made.
    """
    if norm == "plain":
        return []
    found = []
    if norm == "calibrated":
        found.append("norm: 'calibrated' takes what calibrate() found, not a name")
    if method not in ("fpi", "aki"):
        found.append(f"norm: {method} copies nothing twice, leave norm 'plain'")
    if norm == "mean_pad" and source.norm_position == "post":
        found.append(
            "norm 'mean_pad' is for pre-norm models: a post-norm block hands on what its norm "
            "gives, and that has no entries that stay the mean; calibrate instead, or choose a "
            "multiple of the width"
        )
    if isinstance(norm, NormCalibration):
        ends = norm.grown.source_size, norm.grown.target_size
        wrong = [name for name in normed if sizes[name] != ends]
        if wrong or not normed:
            found.append(
                f"norm: the calibration is for {ends[0]} -> {ends[1]}, but "
                + (
                    ", ".join(f"{n} goes {sizes[n][0]} -> {sizes[n][1]}" for n in wrong)
                    or "no norm"
                )
            )
        table = source.axis_table()
        for path, factors in norm.scales.items():
            axes = table.get(path)
            if axes is None or axes.role != "norm_scale":
                found.append(f"norm: the calibration names {path!r}, which is no norm's scale")
                continue
            layers = sizes["layers"][0] if axes.indexed[:1] == ("layers",) else 1
            if len(factors) != layers:
                found.append(f"norm: {path}: found {len(factors)} factors, expected {layers}")
    return found


def apart_problems(table: AxisTable, normed: tuple[str, ...]) -> list[str]:
    """Kernels inside layers that work on every entry of the residual stream by itself.

    What they make of the mean of all entries is not the mean of what they make of the entries.
    """
    groups: list[tuple[set[str], list[str]]] = []
    for path, axes in table.items():
        if axes.role != "kernel" or "layers" not in axes.indexed:
            continue
        names, paths = set(axes.consumes + axes.produces), [path]
        for other in [group for group in groups if group[0] & names]:
            groups.remove(other)
            names, paths = names | other[0], other[1] + paths
        groups.append((names, paths))
    return [
        f"norm 'mean_pad': {', '.join(paths)} work on every entry of {', '.join(normed)} by "
        "itself, so that entries which are the mean would not stay it; choose a multiple of the "
        "width"
        for names, paths in groups
        if not names & set(normed)
    ]


def fresh_problems(table: AxisTable, paths: list[str], *, why: str) -> list[str]:
    """Parameters that growth draws something for, and that do not say how wide to draw it."""
    lacking = [path for path in paths if not table[path].init_std]
    if not lacking:
        return []
    return [f"{why} needs the init_std of {', '.join(lacking)}; give it in their Axes"]
