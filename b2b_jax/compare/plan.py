"""The trainings of a comparison, each in a folder that its settings and the code name."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from b2b_jax.compare.config import CompareConfig, Entry, SourceSpec
from b2b_jax.compare.identity import code_version, digest
from b2b_jax.data import DataConfig
from b2b_jax.train.config import RunConfig, result_fields


@dataclass(frozen=True)
class Plan:
    """Names and settings of everything that a comparison trains or makes.

    Every folder's name ends in a hash of what its content depends on: settings, code, and what it
    starts from. A finished run is found again unless something changed that its result may depend
    on.

    Attributes:
        config: the comparison.
        fingerprint: of the model in a folder that was not made here.
        tokens: fingerprint of the tokens that a run is trained on, which its settings do not name:
            the same files may hold other text.
    """

    config: CompareConfig
    fingerprint: Callable[[str], str]
    tokens: Callable[[DataConfig], str]

    @property
    def root(self) -> Path:
        """Folder of the comparison."""
        return Path(self.config.run_dir)

    def source_seed(self, seed: int) -> int:
        """Seed of the source that a run with some seed uses."""
        return seed if self.config.source_seeds == "each" else self.config.seeds[0]

    def source_run(self, spec: SourceSpec, seed: int) -> RunConfig:
        """The training of a small model."""
        run = _with_seed(spec.run, self.source_seed(seed))
        name = f"{spec.name}-seed{self.source_seed(seed)}-{self._source_id(spec, seed)}"
        return dataclasses.replace(run, run_dir=str(self.root / "sources" / name))

    def source_folder(self, spec: SourceSpec, seed: int) -> str:
        """Folder of a small model, trained here or given."""
        return spec.folder or self.source_run(spec, seed).run_dir

    def _source_id(self, spec: SourceSpec, seed: int) -> str:
        if spec.folder:
            return digest({"model": self.fingerprint(spec.folder)})
        run = _with_seed(spec.run, self.source_seed(seed))
        return digest({"run": self._fields(run), "code": code_version()})

    def start_folder(self, entry: Entry, seed: int) -> str:
        """Folder of the target's first parameters."""
        name = f"{entry.method.growth}-seed{seed}-{self._start_id(entry, seed)}"
        return str(self.root / "starts" / name)

    def _start_id(self, entry: Entry, seed: int) -> str:
        made: dict[str, Any] = {
            "target": self.config.target.to_dict(),
            "seed": seed,
            "growth": entry.method.growth,
            "code": code_version(),
        }
        if entry.method.growth != "random":
            made |= {
                "mapping": entry.method.mapping,
                "depth": entry.method.depth,
                "source": self._source_id(self.config.source(entry.source), seed),
            }
        return digest(made)

    def run(self, entry: Entry, *, seed: int, rate: float) -> RunConfig:
        """The training of an entry with some seed and peak learning rate."""
        run = _with_seed(entry.run, seed)
        optimizer = dataclasses.replace(run.optimizer, peak_learning_rate=rate)
        run = dataclasses.replace(run, optimizer=optimizer)
        depends: dict[str, Any] = {
            "run": self._fields(run),
            "start": self._start_id(entry, seed),
            "code": code_version(),
        }
        if run.inherit.steps:
            spec = self.config.source(entry.source)
            depends["teacher"] = self._source_id(spec, seed)
            inherit = dataclasses.replace(
                run.inherit,
                teacher=self.source_folder(spec, seed),
                cache_dir=str(self.root / "teachers" / digest({"code": code_version()})),
            )
            run = dataclasses.replace(run, inherit=inherit)
        name = f"{entry.name}-lr{rate:g}-seed{seed}-{digest(depends)}"
        return dataclasses.replace(
            run,
            run_dir=str(self.root / "runs" / name),
            init=self.start_folder(entry, seed),
        )

    def _fields(self, run: RunConfig) -> dict[str, Any]:
        fields = result_fields(run.to_dict())
        elsewhere = ("init", "inherit.teacher")
        kept = {name: value for name, value in fields.items() if name not in elsewhere}
        return kept | {"tokens": self.tokens(run.data)}

    @functools.cached_property
    def in_order(self) -> tuple[Entry, ...]:
        """The entries so that a rate is chosen before another entry takes it over."""
        return tuple(sorted(self.config.entries, key=lambda entry: bool(entry.rate_of)))


def _with_seed(run: RunConfig, seed: int) -> RunConfig:
    return dataclasses.replace(run, train=dataclasses.replace(run.train, seed=seed))
