"""A growth plan in words."""

import numpy as np

from b2b_jax.growth.plan import GrowthPlan


def rule(plan: GrowthPlan, path: str) -> str:
    """What happens to one parameter, in words."""
    if plan.method == "random":
        return "fresh"
    axes = plan.axes[path]
    grown = [name for name in dict.fromkeys(axes.names) if not plan.maps[name].is_identity]
    if plan.method == "direct_copy":
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
        share = "divide by copies of " if plan.split == "equal" else "unequal shares of "
        parts.append(share + ", ".join(divided))
    means = [name for name in grown if plan.maps[name].is_mean.any()]
    read_by_it = plan.unread_entries(path).any()
    for name in means:
        fill = "fresh" if read_by_it and name in divided else "mean"
        parts.append(f"{'0' if axes.role == 'norm_bias' else fill} in new {name}")
    if path in plan.norm_scales:
        parts.append("calibrated factor")
    donated = plan.donated_axes(path)
    if donated:
        parts.append(f"new {', '.join(donated)} from layer l+1")
    if plan.is_silenced(path):
        parts.append(f"zero in layers {np.flatnonzero(plan.silent_layers).tolist()}")
    return "; ".join(parts) or "copy"


def describe(plan: GrowthPlan) -> str:
    """The plan as a text table: one line per parameter, then what to expect."""
    rows = [("parameter", "source", "target", "rule")] + [
        (path, str(plan.source_shapes[path]), str(plan.target_shapes[path]), rule(plan, path))
        for path in plan.axes
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    if "layers" in plan.maps and plan.method in ("fpi", "aki"):
        lines.append(f"layer order: {plan.maps['layers'].indices.tolist()}")
    lines.append(
        "exact: the grown model computes the source's function"
        if plan.is_exact
        else "not exact: " + "; ".join(plan.why_inexact)
    )
    return "\n".join(lines)
