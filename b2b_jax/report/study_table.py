"""A study as tables: for a README, a terminal and programs."""

import math
from collections.abc import Iterable, Sequence

from rich.table import Table

from b2b_jax.report.savings import UNITS
from b2b_jax.report.study import MethodResult, Study
from b2b_jax.report.study_rows import MethodRow, Spread, all_methods, savings_of_chance, study_rows
from b2b_jax.report.tables import render_csv, render_markdown, render_rich

HEADINGS = (
    "method",
    "peak learning rate",
    "loss at the start",
    "final loss",
    "against scratch",
    "FLOPs to scratch's final loss",
    "saving",
    "saving, source counted",
    "saving (ELECTRA count)",
    "saving (time)",
)
COST_PARTS = ("cost", "saving", "saving_with_source")


def markdown_table(study: Study) -> str:
    """The table for a README, with a line below it on how to read it."""
    cells = [_cells(row, study) for row in study_rows(study)]
    return render_markdown(HEADINGS, cells) + "\n" + footnote(study) + "\n"


def rich_table(study: Study) -> Table:
    """The table for a terminal."""
    cells = [_cells(row, study) for row in study_rows(study)]
    table = render_rich(study.title, HEADINGS, rows=cells)
    table.caption = footnote(study)
    return table


def methods_csv(study: Study) -> str:
    """All numbers of all methods, unrounded, one line per method."""
    header = ["name", "method", "learning_rate", "rate_from", "trials", "counted", "not_reached"]
    header += ["diverged", "unfinished"]
    header += [
        f"{name}_{part}"
        for name in ("first_loss", "final_loss", "against_scratch")
        for part in ("mean", "std")
    ]
    for unit in UNITS:
        header += [f"{part}_{unit}_{stat}" for part in COST_PARTS for stat in ("mean", "std")]
    lines = []
    for row in study_rows(study):
        method, statuses = row.method, [trial.status for trial in row.method.trials]
        line = [method.name, method.label, method.learning_rate, method.rate_from]
        line += [len(statuses), row.counted, row.missed]
        line += [statuses.count("diverged"), statuses.count("unfinished")]
        spreads = [row.first_loss, row.final_loss, row.gain]
        spreads += [
            None if row.missed and part != "cost" else getattr(row.costs[unit], part)
            for unit in UNITS
            for part in COST_PARTS
        ]
        for one in spreads:
            line += [one.mean, one.std] if one else [None, None]
        lines.append(line)
    return render_csv(header, lines)


def trials_csv(study: Study) -> str:
    """All numbers of all runs at the chosen rates, unrounded, one line per run."""
    header = ["name", "method", "seed", "learning_rate", "status", "diverged_at", "last_step"]
    header += ["counted", "reached", "target", "target_is_paired", "first_loss", "last_loss"]
    for unit in UNITS:
        header += [f"{part}_{unit}" for part in ("scratch_total", "source", *COST_PARTS)]
    lines = []
    for row in study_rows(study):
        for one in row.trials:
            trial, base, steps = one.trial, one.baseline, one.trial.curve.steps
            line = [row.method.name, row.method.label, trial.seed, trial.learning_rate]
            line += [trial.status, trial.diverged_at, steps[-1] if len(steps) else None]
            line += [one.counted, one.reached]
            line += [base.target, base.paired] if base else [None, None]
            line += [one.first_loss, one.last_loss]
            for unit in UNITS:
                line += [base.totals[unit] if base else None, trial.source_cost.get(unit)]
                # Of a run that did not get there the cost is a bound, and a saving is not known.
                parts = COST_PARTS if one.reached else ("cost",)
                line += [getattr(one.savings[unit], part) for part in parts]
                line += [None] * (len(COST_PARTS) - len(parts))
            lines.append(line)
    return render_csv(header, lines)


def sweep_table(study: Study) -> str:
    """Final loss of one seed at each swept learning rate, the chosen rate's in bold.

    Returns:
        Markdown; empty if no method's rate was swept.
    """
    methods = [m for m in all_methods(study) if m.sweep]
    if not methods:
        return ""
    rates = sorted({rate for method in methods for rate in method.sweep})
    rows = [[method.label, *(_sweep_cell(method, rate) for rate in rates)] for method in methods]
    text = render_markdown(["final loss at a peak learning rate of", *map(_rate, rates)], rows)
    notes = ["One seed per cell; the chosen rate is bold."]
    at_end = [m.label for m in methods if _is_at_end(m)]
    if at_end:
        notes.append(
            f"At the end of its range, so that a better one may lie beyond: {_list(at_end)}."
        )
    return f"{text}\n{' '.join(notes)}\n"


def footnote(study: Study) -> str:
    """How to read the table: seeds, what ± and ≤ mean, what counts as reached."""
    rows = study_rows(study)
    notes = [
        f"Mean ± sample standard deviation over seeds ({_seeds(rows)})."
        " Costs: what a run had spent when the held-out loss of its whole model first came down to"
        " the final loss of scratch with the same seed, linear between evaluations; models still"
        " growing do not count. Savings: 1 - cost / total of that scratch run; FLOPs are those of"
        " matrix products where nothing else is said, time is of training on the same machine."
        " Source counted: with the cost of training the small model, where a method uses one."
    ]
    trials = [trial for row in rows for trial in row.trials]
    if any(row.missed for row in rows):
        notes.append(
            "Not reached: those seeds enter with all that they spent, so the cost is a lower bound,"
            " and where some seeds did reach it the saving is at most (≤) what is shown."
        )
    if any(one.baseline and not one.baseline.paired for one in trials):
        notes.append("Seeds without a finished scratch run are held against the mean of scratch.")
    if any(not one.counted for one in trials):
        notes.append("Runs that diverged or are unfinished are in no mean.")
    chance = savings_of_chance(study)
    if chance:
        notes.append(
            "Against scratch: final loss less that of scratch with the same seed. Scratch held"
            " against its own other seeds by the same rule seems to save"
            f" {mean_and_deviation(_scaled(chance, 100), '{:.1f}', unit=' %')}: what chance shows."
        )
    if any(row.method.rate_from for row in rows):
        notes.append("Methods that took over a rate had none chosen for themselves.")
    notes += study.notes
    return " ".join(notes)


def mean_and_deviation(value: Spread | None, form: str = "{:.3f}", *, unit: str = "") -> str:
    """A cell, as in ``5.628 ± 0.012``; a single value stands alone.

    Args:
        value: None for a plain ``-``.
        form: of both numbers.
        unit: behind them, such as " %".

    Example:
        >>> mean_and_deviation(Spread(5.6281, 0.0121, 3)), mean_and_deviation(Spread(5.6, None, 1))
        ('5.628 ± 0.012', '5.600')
    """
    if value is None:
        return "-"
    deviation = "" if value.std is None else f" ± {form.replace('+', '').format(value.std)}"
    return f"{form.format(value.mean)}{deviation}{unit}"


def outcome(row: MethodRow) -> str:
    """What became of runs that did not go to plan, as in ``seed 2 diverged at step 400``."""
    words = []
    for one in row.trials:
        trial = one.trial
        if trial.status == "diverged":
            words.append(f"seed {trial.seed} diverged at step {trial.diverged_at}")
        elif trial.status == "unfinished":
            last = f"{trial.curve.steps[-1]:.0f}" if len(trial.curve.steps) else "0"
            words.append(f"seed {trial.seed} unfinished at step {last}")
    return ", ".join(words)


def _cells(row: MethodRow, study: Study) -> list[str]:
    exact, electra, seconds = (row.costs[unit] for unit in UNITS)
    final = [mean_and_deviation(row.final_loss)] if row.final_loss else []
    return [
        row.method.label,
        _rate(row.method.learning_rate) + _rate_origin(row.method),
        mean_and_deviation(row.first_loss),
        "; ".join([*final, *filter(None, [outcome(row)])]) or "-",
        "0" if row.is_scratch else mean_and_deviation(row.gain, "{:+.3f}"),
        _flops(exact.cost) + _missed(row),
        saving_text(row, exact.saving),
        saving_text(row, exact.saving_with_source),
        saving_text(row, electra.saving),
        saving_text(row, seconds.saving),
    ]


def saving_text(row: MethodRow, saving: Spread | None) -> str:
    """A saving in percent, an upper bound (≤) where some seeds did not get there."""
    if saving is None:
        return "-"
    if row.is_scratch:
        return "0.0 %"  # by definition; a deviation of 0 would look measured
    if row.missed == row.counted:
        return "not reached"
    text = mean_and_deviation(_scaled(saving, 100), "{:.1f}", unit=" %")
    text = f"≤ {text}" if row.missed else text
    lost = len(row.trials) - row.counted
    return f"{text} ({row.counted} of {len(row.trials)} seeds)" if lost else text


def _missed(row: MethodRow) -> str:
    return f", not reached ({row.missed} of {row.counted})" if row.missed else ""


def _flops(cost: Spread | None) -> str:
    """Both numbers under one power of ten, so that they can be compared."""
    if cost is None or cost.mean <= 0:
        return mean_and_deviation(cost, "{:.2f}")
    power = math.floor(math.log10(cost.mean))
    text = mean_and_deviation(_scaled(cost, 10.0**-power), "{:.2f}")
    return f"({text})e{power}"


def _scaled(value: Spread, factor: float) -> Spread:
    std = None if value.std is None else factor * value.std
    return Spread(factor * value.mean, std, value.count)


def _rate(rate: float) -> str:
    return f"{rate:g}"


def _rate_origin(method: MethodResult) -> str:
    if method.rate_from:
        return f" (as {method.rate_from_label or method.rate_from})"
    return "" if method.sweep else " (not swept)"


def _sweep_cell(method: MethodResult, rate: float) -> str:
    if rate not in method.sweep:
        return "-"
    loss = method.sweep[rate]
    text = "diverged" if loss is None else f"{loss:.3f}"
    return f"**{text}**" if math.isclose(rate, method.learning_rate) else text


def _is_at_end(method: MethodResult) -> bool:
    ends = (min(method.sweep), max(method.sweep))
    return len(method.sweep) > 1 and any(math.isclose(method.learning_rate, end) for end in ends)


def _seeds(rows: Sequence[MethodRow]) -> str:
    """Who used which seeds, said once where all used the same."""
    by_seeds: dict[str, list[str]] = {}
    for row in rows:
        seeds = _list(str(trial.seed) for trial in row.method.trials) or "none"
        by_seeds.setdefault(seeds, []).append(row.method.label)
    if len(by_seeds) == 1:
        return next(iter(by_seeds))
    return "; ".join(f"{_list(labels)}: {seeds}" for seeds, labels in by_seeds.items())


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)
