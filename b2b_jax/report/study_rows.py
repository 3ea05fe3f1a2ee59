"""What the methods of a study cost: crossings of single runs, mean and deviation over seeds.

The target is paired: seed s of a method has to reach the final loss of scratch with seed s, and its
saving is relative to that run's total. Both saw the same data order and masks, so what they have in
common cancels. Where scratch has no finished run of a seed, the mean of those it has stands in.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from b2b_jax.report.runs import Curve
from b2b_jax.report.savings import UNITS, Saving, Unit, cost_of_reaching, saving_at
from b2b_jax.report.study import MethodResult, Study, Trial


@dataclass(frozen=True)
class Spread:
    """Mean over seeds.

    Attributes:
        mean: of the values.
        std: sample standard deviation (n - 1 in the denominator), None for a single value.
        count: of values.
    """

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Baseline:
    """What one seed is held against.

    Attributes:
        target: held-out loss to reach.
        totals: unit -> what scratch spent in all.
        paired: whether it is the scratch run of the same seed, not the mean of all.
    """

    target: float
    totals: dict[Unit, float]
    paired: bool


@dataclass(frozen=True)
class TrialRow:
    """One run of a method against its baseline.

    Attributes:
        trial: the run.
        baseline: what it is held against, None without a finished scratch run.
        first_loss: its first evaluation, None where that was of fewer layers than the target's.
        last_loss: its last evaluation of the whole model, None if there is none.
        reached: whether it came down to the target.
        counted: whether it enters the means: if it is done. Runs that stopped early would be
            chosen by how they went.
        savings: by unit; costs are totals where the target was not reached, savings None for runs
            that are not counted.
    """

    trial: Trial
    baseline: Baseline | None
    first_loss: float | None
    last_loss: float | None
    reached: bool
    counted: bool
    savings: dict[Unit, Saving]


@dataclass(frozen=True)
class CostSpread:
    """Cost and savings of a method in one unit, over its counted trials; None where unknown.

    Attributes:
        cost: spent when the target was reached; in all, in trials that did not.
        saving: 1 - cost / scratch's total, of each seed, then averaged.
        saving_with_source: the same with the source's cost added.
    """

    cost: Spread | None
    saving: Spread | None
    saving_with_source: Spread | None


@dataclass(frozen=True)
class MethodRow:
    """One line of a study's table.

    Attributes:
        method: whose.
        is_scratch: whether it is the baseline itself.
        trials: one row per seed.
        first_loss: of counted trials, None where the models were not yet whole.
        final_loss: of finished trials.
        gain: final loss less that of scratch with the same seed; below zero is better.
        missed: how many counted trials did not reach the target; their costs are lower bounds.
        costs: by unit.
    """

    method: MethodResult
    is_scratch: bool
    trials: tuple[TrialRow, ...]
    first_loss: Spread | None
    final_loss: Spread | None
    gain: Spread | None
    missed: int
    costs: dict[Unit, CostSpread]

    @property
    def counted(self) -> int:
        """Trials in the means of costs."""
        return sum(row.counted for row in self.trials)


def all_methods(study: Study) -> tuple[MethodResult, ...]:
    """Scratch first, if there is one, then the others in their order."""
    return (*([study.scratch] if study.scratch else []), *study.methods)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and sample deviation of the known values, None if there is none.

    Example:
        >>> spread([1.0, None, 3.0])
        Spread(mean=2.0, std=1.4142135623730951, count=2)
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Spread(float(np.mean(known)), deviation, len(known))


def _spread_of_all(values: Iterable[float | None]) -> Spread | None:
    """As `spread`, but None if any value is unknown, so that it is of the same runs as others."""
    found = list(values)
    return None if None in found else spread(found)


def whole_part(curve: Curve, num_layers: int) -> np.ndarray:
    """Which evaluations are of the whole model: bool ``[n]``."""
    return curve.layers >= num_layers


def baselines(study: Study) -> dict[int | None, Baseline]:
    """Seed -> its baseline; None -> the mean of all, for seeds that scratch lacks."""
    done = [t for t in (study.scratch.trials if study.scratch else ()) if t.status == "done"]
    found: dict[int | None, Baseline] = {
        trial.seed: Baseline(
            target=float(trial.curve.loss[-1]),
            totals={unit: _total(trial.curve, unit) for unit in UNITS},
            paired=True,
        )
        for trial in done
    }
    if found:
        single = list(found.values())
        found[None] = Baseline(
            target=float(np.mean([one.target for one in single])),
            totals={unit: float(np.mean([one.totals[unit] for one in single])) for unit in UNITS},
            paired=False,
        )
    return found


def study_rows(study: Study) -> list[MethodRow]:
    """One row per method, in the order of `all_methods`."""
    targets = baselines(study)
    rows = []
    for method in all_methods(study):
        own = method is study.scratch
        trials = [_trial_row(t, targets, is_scratch=own, study=study) for t in method.trials]
        rows.append(_method_row(method, tuple(trials), is_scratch=own))
    return rows


def _trial_row(
    trial: Trial, targets: dict[int | None, Baseline], *, is_scratch: bool, study: Study
) -> TrialRow:
    curve = trial.curve
    baseline = targets.get(trial.seed, targets.get(None))
    target = baseline.target if baseline else None
    found: dict[Unit, float | None] = {}
    for unit in UNITS:
        found[unit] = cost_of_reaching(curve, unit, target=target, num_layers=study.num_layers)
        if is_scratch and trial.status == "done":
            # What others are held against is what it spent, even if its curve dipped earlier.
            found[unit] = _total(curve, unit)
    reached = found["exact"] is not None
    counted = trial.status == "done"
    savings: dict[Unit, Saving] = {}
    for unit in UNITS:
        cost = found[unit]
        savings[unit] = saving_at(
            _total(curve, unit) if cost is None else cost,
            total=baseline.totals[unit] if baseline and counted else None,
            # A method without a small model has nothing to add; an unknown cost stays unknown.
            source=trial.source_cost.get(unit) if trial.source_cost else 0,
        )
    whole = whole_part(curve, study.num_layers)
    return TrialRow(
        trial=trial,
        baseline=baseline,
        first_loss=float(curve.loss[0]) if whole[:1].any() else None,
        last_loss=float(curve.loss[whole][-1]) if whole.any() else None,
        reached=reached,
        counted=counted,
        savings=savings,
    )


def _method_row(
    method: MethodResult, trials: tuple[TrialRow, ...], *, is_scratch: bool
) -> MethodRow:
    counted = [row for row in trials if row.counted]
    costs: dict[Unit, CostSpread] = {}
    for unit in UNITS:
        savings = [row.savings[unit] for row in counted if row.baseline]
        costs[unit] = CostSpread(
            cost=spread(one.cost for one in savings),
            saving=spread(one.saving for one in savings),
            saving_with_source=_spread_of_all(one.saving_with_source for one in savings),
        )
    return MethodRow(
        method=method,
        is_scratch=is_scratch,
        trials=trials,
        first_loss=spread(row.first_loss for row in counted),
        final_loss=spread(row.last_loss for row in counted),
        gain=spread(
            row.last_loss - row.baseline.target
            for row in counted
            if row.baseline and row.last_loss is not None
        ),
        missed=sum(not row.reached for row in counted if row.baseline),
        costs=costs,
    )


def savings_of_chance(study: Study) -> Spread | None:
    """What scratch itself seems to save when it is held against its other seeds, by the same rule.

    Near its end a curve is flat, so that a loss a little lower is reached much earlier, and runs
    that do not get there count as zero: chance alone shows a saving. One of a method is evidence
    only beyond that. In exact FLOPs; None with fewer than two finished runs.
    """
    done = [t for t in (study.scratch.trials if study.scratch else ()) if t.status == "done"]
    savings = []
    for one in done:
        for other in done:
            if one is not other:
                target, total = float(other.curve.loss[-1]), _total(other.curve, "exact")
                cost = cost_of_reaching(
                    one.curve, "exact", target=target, num_layers=study.num_layers
                )
                savings.append(0.0 if cost is None else 1 - cost / total)
    return spread(savings)


def _total(curve: Curve, unit: Unit) -> float:
    return float(getattr(curve, unit)[-1]) if len(curve.steps) else 0.0
