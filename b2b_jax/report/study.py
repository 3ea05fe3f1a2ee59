"""Many runs of many methods, several seeds each: what they cost, with mean and deviation."""

from dataclasses import dataclass
from typing import Literal

from b2b_jax.report.runs import Curve

Status = Literal["done", "unfinished", "diverged"]


@dataclass(frozen=True)
class Trial:
    """One run of a method.

    Attributes:
        seed: of data order, masks and fresh parameters.
        learning_rate: its peak.
        curve: held-out loss over the run.
        status: whether it reached its planned length.
        diverged_at: the step whose loss was no number, if it diverged.
        source_cost: "exact" and "electra" FLOPs and "seconds" spent on the small model that it
            uses; empty if it uses none.
    """

    seed: int
    learning_rate: float
    curve: Curve
    status: Status
    diverged_at: int | None
    source_cost: dict[str, float]


@dataclass(frozen=True)
class MethodResult:
    """All runs of one method.

    Attributes:
        name: as the config calls it.
        label: what a reader calls it.
        learning_rate: the peak that the sweep chose, or that was given.
        trials: runs at that rate, one per seed.
        sweep: peak learning rate -> final held-out loss with the sweep's seed, None where it
            diverged; empty if the rate was not swept for this method.
        rate_from: name of the method whose sweep chose the rate, if not its own.
        rate_from_label: what a reader calls that method.
    """

    name: str
    label: str
    learning_rate: float
    trials: tuple[Trial, ...]
    sweep: dict[float, float | None]
    rate_from: str = ""
    rate_from_label: str = ""


@dataclass(frozen=True)
class Study:
    """Methods that are compared with each other.

    Attributes:
        title: of tables and pictures.
        num_layers: of the target; evaluations of fewer layers are of a model still growing.
        scratch: the target from random initialisation, what savings are relative to; None if it
            has not run yet.
        methods: the others, in the order to show.
        sources: label -> curve of one run of each small model.
        notes: what else a reader of the table must know.
    """

    title: str
    num_layers: int
    scratch: MethodResult | None
    methods: tuple[MethodResult, ...]
    sources: dict[str, Curve]
    notes: tuple[str, ...] = ()
