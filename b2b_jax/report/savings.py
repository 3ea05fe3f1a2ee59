"""What growth saves: the cost at which a run first reaches scratch's final loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rich.table import Table

from b2b_jax.report.runs import Comparison, Curve, Run
from b2b_jax.report.tables import render_csv, render_markdown, render_rich

Unit = Literal["exact", "electra", "seconds"]
UNITS: tuple[Unit, ...] = ("exact", "electra", "seconds")


@dataclass(frozen=True)
class Saving:
    """Cost and saving of one run in one unit.

    Attributes:
        cost: spent when scratch's final loss was first reached; in all, where it was not.
        saving: 1 - cost / scratch's total; None without a scratch run.
        saving_with_source: the same with the source's cost added; None where it is not known.
    """

    cost: float
    saving: float | None
    saving_with_source: float | None


@dataclass(frozen=True)
class TableRow:
    """One line of the savings table.

    Attributes:
        method: the run's label.
        first_loss: held-out loss before its first step.
        final_loss: held-out loss at its end.
        reached: whether scratch's final loss was reached.
        complete: whether the run has reached its planned length.
        savings: by unit: "exact" and "electra" FLOPs, "seconds".
    """

    method: str
    first_loss: float
    final_loss: float
    reached: bool
    complete: bool
    savings: dict[Unit, Saving]


def first_crossing(cost: np.ndarray, loss: np.ndarray, *, target: float) -> float | None:
    """The cost at which a loss curve first comes down to a target, None if it never does.

    Linear between evaluations, which are taken as they are, without smoothing.

    Args:
        cost: ``[n]``, rising.
        loss: ``[n]``.
        target: the loss to reach.

    Example:
        >>> first_crossing(np.array([0.0, 10.0, 20.0]), np.array([4.0, 3.0, 1.0]), target=2.0)
        15.0
    """
    below = np.flatnonzero(loss <= target)
    if not below.size:
        return None
    index = int(below[0])
    if index == 0:
        return float(cost[0])
    fraction = (loss[index - 1] - target) / (loss[index - 1] - loss[index])
    return float(cost[index - 1] + fraction * (cost[index] - cost[index - 1]))


def cost_of_reaching(
    curve: Curve, unit: Unit, *, target: float | None, num_layers: int
) -> float | None:
    """The cost at which the whole model of a run first comes down to a target.

    Args:
        curve: held-out loss over the run.
        unit: of the cost.
        target: the loss to reach; None where there is none, which is never reached.
        num_layers: of the whole model; evaluations of fewer layers, while depth still grows, are
            passed over.
    """
    whole = curve.layers >= num_layers
    if target is None or not whole.any():
        return None
    return first_crossing(getattr(curve, unit)[whole], curve.loss[whole], target=target)


def saving_at(cost: float, *, total: float | None, source: float | None) -> Saving:
    """Saving of what has spent `cost`.

    Args:
        cost: spent by the run itself.
        total: scratch's, None without a scratch run.
        source: spent on the small model, None where it is not known.
    """
    return Saving(
        cost,
        None if total is None else 1 - cost / total,
        None if total is None or source is None else 1 - (cost + source) / total,
    )


def savings_table(comparison: Comparison) -> list[TableRow]:
    """One row per run of the target model: scratch first, then the grown ones."""
    runs = [*([comparison.scratch] if comparison.scratch else []), *comparison.grown]
    return [_row(run, comparison.scratch) for run in runs]


def _row(run: Run, scratch: Run | None) -> TableRow:
    target = float(scratch.curve.loss[-1]) if scratch else None
    savings: dict[Unit, Saving] = {}
    reached = False
    for unit in UNITS:
        total = float(getattr(scratch.curve, unit)[-1]) if scratch else None
        if run is scratch:
            savings[unit] = saving_at(float(getattr(run.curve, unit)[-1]), total=total, source=0)
            reached = True
            continue
        layers = run.model["num_hidden_layers"]
        found = cost_of_reaching(run.curve, unit, target=target, num_layers=layers)
        reached = found is not None
        spent = float(getattr(run.curve, unit)[-1]) if found is None else found
        savings[unit] = saving_at(spent, total=total, source=run.source_cost.get(unit))
    return TableRow(
        method=run.label,
        first_loss=float(run.curve.loss[0]),
        final_loss=float(run.curve.loss[-1]),
        reached=reached,
        complete=run.is_complete,
        savings=savings,
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _cells(row: TableRow) -> list[str]:
    exact = row.savings["exact"]
    reached = "" if row.reached else " (not reached)"
    return [
        row.method + ("" if row.complete else " (unfinished)"),
        f"{row.first_loss:.3f}",
        f"{row.final_loss:.3f}",
        f"{exact.cost:.3g}{reached}",
        _percent(exact.saving),
        _percent(exact.saving_with_source),
        _percent(row.savings["electra"].saving),
        _percent(row.savings["seconds"].saving),
    ]


HEADINGS = (
    "method",
    "loss right after growth",
    "final loss",
    "FLOPs to reach scratch's final loss",
    "saving",
    "saving, source counted",
    "saving (ELECTRA count)",
    "saving (time)",
)


def rich_table(rows: Sequence[TableRow]) -> Table:
    """The table for a terminal."""
    return render_rich("Held-out loss and cost", HEADINGS, rows=map(_cells, rows))


def markdown_table(rows: Sequence[TableRow]) -> str:
    """The table for a README."""
    return render_markdown(HEADINGS, map(_cells, rows))


def csv_table(rows: Sequence[TableRow]) -> str:
    """All numbers, unrounded, one line per run."""
    parts = ("cost", "saving", "saving_with_source")
    names = [f"{part}_{unit}" for unit in UNITS for part in parts]
    lines = []
    for row in rows:
        values = [getattr(row.savings[unit], part) for unit in UNITS for part in parts]
        lines.append(
            [row.method, row.first_loss, row.final_loss, row.reached, row.complete, *values]
        )
    return render_csv(["method", "first_loss", "final_loss", "reached", "complete", *names], lines)
