"""`b2b inspect`: what a model folder holds (effects: reads)."""

import json
import math
from typing import Any

from b2b_jax.axes import shapes
from b2b_jax.growth import GrowthPlan
from b2b_jax.models import ModelConfig
from b2b_jax.train.saved import read_meta
from b2b_jax.train.writers import Reporter


def inspect_command(path: str, *, reporter: Reporter) -> None:
    """Print config, parameter table with axes, and lineage; reads no weights.

    Raises:
        CheckpointError, ConvertError: if the folder holds no model that can be read.
    """
    meta = read_meta(path)
    cfg = ModelConfig.from_dict(meta["model"])
    for text in (_config(path, cfg, meta), "", _table(cfg), "", _lineage(meta.get("lineage", {}))):
        for line in text.splitlines() or [""]:
            reporter.note(line)


def _config(path: str, cfg: ModelConfig, meta: dict[str, Any]) -> str:
    fields = cfg.to_dict()
    width = max(map(len, fields))
    lines = [f"{path}: {cfg.family}, step {meta['step']}"]
    lines += [f"  {name:<{width}}  {value}" for name, value in fields.items()]
    return "\n".join(lines)


def _table(cfg: ModelConfig) -> str:
    table = cfg.axis_table()
    found = shapes(table, cfg.axis_sizes())
    rows = [("parameter", "shape", "entries", "axes")]
    rows += [
        (path, str(found[path]), f"{math.prod(found[path]):,}", str(axes))
        for path, axes in table.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{path:<{widths[0]}}  {shape:<{widths[1]}}  {entries:>{widths[2]}}  {axes}"
        for path, shape, entries, axes in rows
    ]
    total = sum(map(math.prod, found.values()))
    return "\n".join([*lines, f"{total:,} parameters"])


def _lineage(lineage: dict[str, Any]) -> str:
    if not lineage:
        return "lineage: none recorded"
    brief = {name: value for name, value in lineage.items() if name != "growth_plan"}
    lines = ["lineage:", *(f"  {name}: {value}" for name, value in brief.items())]
    if "growth_plan" in lineage:
        plan = GrowthPlan.from_json(json.dumps(lineage["growth_plan"]))
        exact = "exact" if plan.is_exact else "not exact: " + "; ".join(plan.why_inexact)
        lines.append(
            f"  grown by {plan.method}, mapping {plan.mapping}, norm {plan.norm}, "
            f"depth {plan.depth}, seed {plan.seed}, b2b_jax {plan.library_version}; {exact}"
        )
    return "\n".join(lines)
