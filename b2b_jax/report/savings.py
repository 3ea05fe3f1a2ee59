"""What growth saves: the cost at which a run first reaches scratch's final loss."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rich.table import Table

from b2b_jax.report.runs import Comparison, Run

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


def savings_table(comparison: Comparison) -> list[TableRow]:
    """One row per run of the target model: scratch first, then the grown ones."""
    runs = [*([comparison.scratch] if comparison.scratch else []), *comparison.grown]
    return [_row(run, comparison.scratch) for run in runs]


def _row(run: Run, scratch: Run | None) -> TableRow:
    target = float(scratch.curve.loss[-1]) if scratch else None
    savings: dict[Unit, Saving] = {}
    reached = False
    for unit in UNITS:
        cost = getattr(run.curve, unit)
        if run is scratch:
            savings[unit] = Saving(float(cost[-1]), 0.0, 0.0)
            reached = True
            continue
        found = None if target is None else first_crossing(cost, run.curve.loss, target=target)
        reached = found is not None
        spent = float(cost[-1]) if found is None else found
        total = float(getattr(scratch.curve, unit)[-1]) if scratch else None
        source = run.source_cost.get(unit)
        savings[unit] = Saving(
            spent,
            None if total is None else 1 - spent / total,
            None if total is None or source is None else 1 - (spent + source) / total,
        )
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
    table = Table(title="Held-out loss and cost")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def markdown_table(rows: Sequence[TableRow]) -> str:
    """The table for a README."""
    lines = [list(HEADINGS), ["---", *["---:"] * (len(HEADINGS) - 1)], *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def csv_table(rows: Sequence[TableRow]) -> str:
    """All numbers, unrounded, one line per run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = ("cost", "saving", "saving_with_source")
    names = [f"{part}_{unit}" for unit in UNITS for part in parts]
    writer.writerow(["method", "first_loss", "final_loss", "reached", "complete", *names])
    for row in rows:
        values = [getattr(row.savings[unit], part) for unit in UNITS for part in parts]
        writer.writerow(
            [row.method, row.first_loss, row.final_loss, row.reached, row.complete, *values]
        )
    return out.getvalue()
