"""Deciding on a growth: from two configs to a `GrowthPlan`, or to every reason why not."""

import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import numpy as np

from b2b_jax.axes import Axes, normed_axes
from b2b_jax.growth.calibration import NormCalibration
from b2b_jax.growth.depth import Depth, layer_order
from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.growable import GrowableConfig, GrownSizes, table_models
from b2b_jax.growth.mappings import (
    AXIS_MAPPINGS,
    AxisMapping,
    Split,
    after_fixed,
    mean_padded,
    split_unequally,
    with_donors,
)
from b2b_jax.growth.mappings import Mapping as WidthMapping
from b2b_jax.growth.maps import IndexMap, identity
from b2b_jax.growth.noise import noisy_axis
from b2b_jax.growth.plan import AkiScope, GrowthPlan, Method, NormPosition
from b2b_jax.growth.requirements import (
    apart_problems,
    depth_problems,
    fresh_problems,
    norm_problems,
    option_problems,
    size_problems,
)

AxisRule = AxisMapping | str | Sequence[int] | IndexMap
"""How one axis is mapped: by name, by the donor of every new entry, or by a whole map."""
DEFAULT_RULES: dict[str, AxisMapping] = {"vocab": "mean", "positions": "cyclic", "types": "cyclic"}
"""Of axes that are lists of entries; all others take the mapping of width."""


def plan_growth(
    source: GrowableConfig | None = None,
    target: GrowableConfig | None = None,
    *,
    method: Method = "aki",
    mapping: WidthMapping = "cyclic",
    depth: Depth = "stack",
    aki_scope: AkiScope = "all",
    norm: NormCalibration | Literal["plain", "mean_pad"] = "plain",
    split: Split = "equal",
    noise: float = 0.0,
    maps: Mapping[str, AxisRule] | None = None,
    seed: int = 0,
    axes: Mapping[str, Axes | str] | None = None,
    sizes: GrownSizes | None = None,
    norm_position: NormPosition = "post",
    residual_axes: Sequence[str] = (),
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
        norm: "plain"; "mean_pad" (pre-norm models: exact at any width, with a smaller epsilon, see
            `mean_pad_epsilon`); or what `calibrate` found for a post-norm model.
        split: "equal" parts for all copies, or "unequal" ones, which part under training.
        noise: standard deviation of noise that is added to one copy and taken from the other, in
            units of the parameter's initialisation; 0 for none.
        maps: axis name -> how it is mapped, where it should differ: a name ("cyclic", "balanced",
            "uniform", "mean", "interpolate"), the donor of every new entry, or an `IndexMap`. New
            tokens are the mean of all by default, new positions and types start over from the
            first.
        seed: of random maps, shares, noise and fresh parameters.
        axes: instead of two configs, the table of any model: parameter path -> `Axes`, or the text
            that `Axes.parse` reads.
        sizes: with ``axes``: axis name -> size, or (source size, target size).
        norm_position: with ``axes``: "pre" if every block normalises its input only.
        residual_axes: with ``axes``: axes of the residual stream that no parameter outside the
            layers names, such as the tokens of an MLP-Mixer. Blocks write to them.

    Raises:
        GrowthError: lists every reason why the target cannot be reached.
        AxisError: if the text of an entry of ``axes`` cannot be read.

    Example:
        >>> from b2b_jax.models import preset
        >>> plan = plan_growth(preset("bert-12x384"), preset("bert-base"), method="fpi")
        >>> plan.is_exact, plan.maps["heads"].counts.tolist()
        (True, [2, 2, 2, 2, 2, 2])
        >>> table = {"up/kernel": "kernel: | width -> mlp", "down/kernel": "kernel: | mlp -> width"}
        >>> plan = plan_growth(axes=table, sizes={"width": 4, "mlp": (8, 13)}, method="fpi")
        >>> plan.target_shapes["down/kernel"]
        (13, 4)
    """
    configs, table_given = (source, target), (axes, sizes)
    if any(config is None for config in configs) == any(part is None for part in table_given):
        raise GrowthError("expected a source and a target config, or axes= and sizes=")
    if axes is not None and sizes is not None:
        source, target = table_models(axes, sizes, norm_position)
    assert source is not None and target is not None
    rule = "calibrated" if isinstance(norm, NormCalibration) else norm
    found = option_problems(
        method=method,
        mapping=mapping,
        depth=depth if isinstance(depth, str) else "stack",
        aki_scope=aki_scope,
        norm=rule,
        split=split,
        norm_position=norm_position,
    )
    found += [
        f"{name}: found {value}, expected at least 0 and less than 2**32"
        for name, value in (("seed", seed), ("noise", noise))
        if not 0 <= value < 2**32
    ]
    found += size_problems(source, target, norm=rule)
    found += depth_problems(source, target, depth=depth)
    before, after = source.axis_sizes(), target.axis_sizes()
    both = {name: (before[name], after.get(name, before[name])) for name in before}
    table = dict(target.axis_table())
    found += norm_problems(source, both, normed_axes(table), norm=norm, method=method)
    width_axes = sorted(both.keys() - {"layers"})
    for name in sorted((maps or {}).keys()):
        if name == "layers":
            found.append("maps: the order of layers is depth='...', or a list of layers there")
        elif name not in width_axes:
            found.append(f"maps: there is no axis {name!r}; there are {', '.join(width_axes)}")
        elif norm != "plain" and name in normed_axes(table):
            found.append(f"maps: {name} is mapped by norm {rule!r}; leave it out, or norm 'plain'")
    _refuse(found)
    rules: dict[str, AxisRule] = {**dict.fromkeys(width_axes, mapping), **DEFAULT_RULES}
    if norm != "plain":
        normed_rule = norm.grown if isinstance(norm, NormCalibration) else norm
        rules |= dict.fromkeys(normed_axes(table), normed_rule)
    rules |= maps or {}
    offset = source.invariants().get("position_offset", 0)
    grown: dict[str, IndexMap] = {}
    for name, ends in both.items():
        rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
        try:
            if name == "layers":
                grown[name] = layer_order(depth, *ends)
                continue
            fixed = offset if name == "positions" else 0
            grown[name] = _axis_map(ends, rules[name], rng, fixed=fixed)
            if split == "unequal" and grown[name].shares is None:
                grown[name] = split_unequally(grown[name], rng)
        except GrowthError as error:
            found.append(str(error) if name == "layers" else f"maps: {name}: {error}")
    _refuse(found)
    plan = GrowthPlan(
        source=source.to_dict(),
        target=target.to_dict(),
        axes=table,
        source_sizes=before,
        target_sizes={name: ends[1] for name, ends in both.items()},
        maps=grown,
        method=method,
        mapping=mapping,
        depth=depth if isinstance(depth, str) else "explicit",
        aki_scope=aki_scope,
        seed=seed,
        norm_position=source.norm_position,
        library_version=_library_version(),
        norm=rule,  # pyright: ignore[reportArgumentType]
        split=split,
        noise=noise,
        norm_scales=dict(norm.scales) if isinstance(norm, NormCalibration) else {},
        residual_axes=list(residual_axes),
    )
    _refuse(_plan_problems(plan))
    return plan


def _refuse(problems: list[str]) -> None:
    if problems:
        raise GrowthError("This growth cannot be done:\n  " + "\n  ".join(problems))


def _axis_map(
    ends: tuple[int, int],
    rule: AxisRule,
    rng: np.random.Generator,
    *,
    fixed: int,
) -> IndexMap:
    """The map of one axis; ``fixed`` entries at its start are no part of what is mapped."""
    source, target = ends
    if isinstance(rule, str):
        if rule == "mean_pad":
            return mean_padded(source, target)
        if rule not in AXIS_MAPPINGS:
            raise GrowthError(
                f"found {rule!r}, expected one of {tuple(AXIS_MAPPINGS)}, the donors of the new "
                "entries, or an IndexMap"
            )
        if source == target:
            return identity(source)
        made = AXIS_MAPPINGS[rule](source - fixed, target - fixed, rng)
        if fixed and made.is_mean.any():
            raise GrowthError(
                f"the mean of all would include the {fixed} rows before the first position; choose "
                "'cyclic', 'interpolate' or donors"
            )
        return after_fixed(made, fixed) if fixed else made
    made = rule if isinstance(rule, IndexMap) else with_donors(source, rule)
    if (made.source_size, made.target_size) != ends:
        raise GrowthError(
            f"the map goes {made.source_size} -> {made.target_size}, expected {source} -> {target}"
        )
    return made


def _plan_problems(plan: GrowthPlan) -> list[str]:
    """What only the finished plan can tell."""
    found = []
    donated = {name for path in plan.axes for name in plan.donated_axes(path)}
    found += [
        f"axes: {path}: found layers behind other axes, expected the stacked layers first"
        for path, axes in plan.axes.items()
        if "layers" in axes.names and axes.indexed[:1] != ("layers",)
    ]
    found += [
        f"maps: {name} must begin with the source's own entries for aki, which takes the others "
        "from the layer above"
        for name in sorted(donated)
        if not plan.maps[name].starts_with_identity
    ]
    consumed = {name for axes in plan.axes.values() for name in axes.consumes}
    found += [
        f"maps: {name} is summed over by kernels and can hold copies only"
        + (", or means with norm='mean_pad'" if name in plan.normed_axes else "")
        for name in sorted(consumed - {"layers"})
        if not plan.maps[name].is_copy.all()
        and not (plan.norm == "mean_pad" and name in plan.normed_axes)
    ]
    if plan.silent_layers.any() and not any(map(plan.is_silenced, plan.axes)):
        found.append(
            "depth 'identity': no parameter of the layers is known to write to the residual "
            "stream, so that none can be silenced; name its axes in residual_axes"
        )
    if plan.method in ("direct_copy", "random"):
        drawn = [path for path, axes in plan.axes.items() if axes.role in ("kernel", "embedding")]
        found += fresh_problems(plan.axes, drawn, why=plan.method)
    if found:
        return found
    unread = [path for path in plan.axes if plan.unread_entries(path).any()]
    found += fresh_problems(plan.axes, unread, why="norm 'mean_pad'")
    if plan.norm == "mean_pad":
        found += apart_problems(plan.axes, plan.normed_axes)
    if plan.noise:
        noisy = [
            path for path, axes in plan.axes.items() if noisy_axis(axes, plan.maps) is not None
        ]
        found += fresh_problems(plan.axes, noisy, why="noise")
    return found


def _library_version() -> str:
    try:
        return version("b2b_jax")
    except PackageNotFoundError:
        return "unknown"
