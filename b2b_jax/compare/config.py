"""The schema of a comparison: methods, seeds, learning rates, and what is shown together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from b2b_jax.compare.methods import Method
from b2b_jax.models import ModelConfig
from b2b_jax.train.config import RunConfig

SourceSeeds = Literal["each", "first"]
TrainMissing = Literal["on", "off"]


@dataclass(frozen=True)
class SourceSpec:
    """A small model.

    Attributes:
        name: as the methods call it.
        run: its training, but for seed and folder.
        folder: of a model that exists already; "" to train it.
    """

    name: str
    run: RunConfig
    folder: str = ""


@dataclass(frozen=True)
class Entry:
    """One line of the comparison.

    Attributes:
        name: its key in the config.
        kind: which of `METHODS` it is.
        method: what it does.
        source: name of the small model that it uses, "" for none.
        rates: peak learning rates to try with the first seed; one alone is taken as it is.
        rate_of: entry whose chosen rate it takes instead, or "".
        run: its training, but for seed, folder, rate and start.
    """

    name: str
    kind: str
    method: Method
    source: str
    rates: tuple[float, ...]
    rate_of: str
    run: RunConfig


@dataclass(frozen=True)
class TableSpec:
    """A selection of entries that is shown by itself, such as one table of the paper."""

    title: str
    methods: tuple[str, ...]


@dataclass(frozen=True)
class CompareConfig:
    """Everything about a comparison.

    Attributes:
        run_dir: folder of all its runs.
        title: of tables and pictures.
        target: the large model.
        sources: the small ones.
        entries: the methods, in the order to show.
        seeds: every run is made with each; the first also tries the learning rates.
        source_seeds: whether every seed has its own source, or all the first one's.
        train_missing: whether sources that are not there are trained.
        first_losses: models to compare right after growth, without training (the paper's Table 1).
        tables: file stem -> what else to show by itself.
    """

    run_dir: str
    title: str
    target: ModelConfig
    sources: tuple[SourceSpec, ...]
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    source_seeds: SourceSeeds = "each"
    train_missing: TrainMissing = "on"
    first_losses: tuple[ModelConfig, ...] = ()
    tables: Mapping[str, TableSpec] = field(default_factory=dict)

    def source(self, name: str) -> SourceSpec:
        """The small model of a name."""
        return next(source for source in self.sources if source.name == name)

    def entry(self, name: str) -> Entry:
        """The method of a name."""
        return next(entry for entry in self.entries if entry.name == name)

    def teacher(self, entry: Entry) -> ModelConfig | None:
        """The model that an entry learns from, if it does."""
        return self.source(entry.source).run.model if entry.run.inherit.steps else None
