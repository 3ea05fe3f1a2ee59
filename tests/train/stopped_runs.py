"""A run that was stopped half way, beside one that was not, for the tests of what happens then."""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from jobs import write_yaml
from runs import Recorder, assert_same, final_state, rows, tiny_run

from b2b_jax.cli import main
from b2b_jax.commands.train import train_command
from b2b_jax.train.config import RunConfig


@dataclass(frozen=True)
class StoppedRun:
    """Two runs of the same settings.

    Attributes:
        folder: that holds everything.
        config: of the one that was stopped.
        whole: of the one that was left in peace.
    """

    folder: Path
    config: RunConfig
    whole: RunConfig

    def copy(self, name: str) -> RunConfig:
        """The stopped run under another name, with prepared data of its own."""
        run_dir, data = self.folder / name, self.folder / f"{name}-data"
        shutil.copytree(self.config.run_dir, run_dir)
        shutil.copytree(self.config.data.prepared_dir, data)
        own = dataclasses.replace(self.config.data, prepared_dir=str(data))
        return dataclasses.replace(self.config, run_dir=str(run_dir), data=own)


def stop_at(step: int, folder: Path, **changes) -> StoppedRun:
    """Train a tiny run to its end, and the same until a step."""
    whole = tiny_run(folder, "whole", **changes)
    assert train_command(whole, reporter=Recorder()).exit_code == 0
    config = tiny_run(folder, "stopped", **changes)
    assert train_command(config, reporter=Recorder(signal_at=step)).exit_code == 75
    return StoppedRun(folder, config, whole)


def message(config: RunConfig, capsys) -> str:
    """What the command line says when it ends with 1, in one line."""
    capsys.readouterr()
    assert main(["train", str(write_yaml(config))]) == 1
    said = capsys.readouterr().err
    assert said.startswith("b2b: ") and said.count("\n") == 1, said
    return said.strip()


def assert_it_goes_on(config: RunConfig, whole: RunConfig, *, step: int) -> None:
    """To the end of the run that nothing happened to."""
    reporter = Recorder()
    assert train_command(config, reporter=reporter).exit_code == 0
    assert f"continues from the checkpoint of step {step}" in reporter.text
    assert_same(final_state(config), final_state(whole))
    assert rows(config.run_dir) == rows(whole.run_dir)
