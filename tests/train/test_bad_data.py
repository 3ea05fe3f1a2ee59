"""Tokens, tokenizers and losses that go bad under a run: one message, and nothing is lost."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import Recorder
from stopped_runs import assert_it_goes_on, message

from b2b_jax.commands.train import train_command
from b2b_jax.data import DataError, prepare
from b2b_jax.train.checkpoint import finished_steps
from b2b_jax.train.programs import Programs


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("harm", "split"),
    [
        (cut, "train"),
        pytest.param(Path.unlink, "train", marks=pytest.mark.slow),
        pytest.param(cut, "heldout", marks=pytest.mark.slow),
        pytest.param(Path.unlink, "heldout", marks=pytest.mark.slow),
    ],
)
def test_tokens_that_are_cut_off_or_gone(stopped, capsys, harm, split):
    config = stopped.copy(f"{harm.__name__}-{split}")
    folder = prepare(config.data).path
    harm(folder / f"{split}.npy")
    said = message(config, capsys)
    assert f"{folder}/{split}.npy: cannot be read (" in said
    assert f"delete {folder} to have it prepared again" in said
    assert finished_steps(config.run_dir)[-1] >= 6
    shutil.rmtree(folder)
    assert_it_goes_on(config, stopped.whole, step=finished_steps(config.run_dir)[-1])


class CutsOff(Recorder):
    """Cuts a file off after the first step of a sitting."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def update(self, done: int, total: int, *, text: str, seconds_left: float | None) -> None:
        if "compiling" not in text and self.path.stat().st_size > 200:
            with self.path.open("r+b") as file:
                file.truncate(200)


@pytest.mark.slow
def test_tokens_that_are_cut_off_while_the_run_reads_them(stopped):
    folder, whole = stopped.folder, stopped.whole
    longer = dataclasses.replace(whole.train, steps=40)
    undisturbed = dataclasses.replace(whole, run_dir=str(folder / "longer"), train=longer)
    assert train_command(undisturbed, reporter=Recorder()).exit_code == 0
    data = dataclasses.replace(whole.data, prepared_dir=str(folder / "cut-data"))
    config = dataclasses.replace(undisturbed, run_dir=str(folder / "cut-open"), data=data)
    path = prepare(data).path
    with pytest.raises(DataError, match=r"train\.npy: cannot be read \(it ends before token"):
        train_command(config, reporter=CutsOff(path / "train.npy"))
    kept = finished_steps(config.run_dir)
    assert kept and kept[-1] < 40
    shutil.rmtree(path)
    assert_it_goes_on(config, undisturbed, step=kept[-1])


@pytest.mark.slow
def test_a_tokenizer_file_of_another_content(stopped, capsys):
    folder, config = stopped.folder, stopped.config
    tokenizer = folder / "tokenizer.json"
    shutil.copy(prepare(config.data).path / "tokenizer.json", tokenizer)
    data = dataclasses.replace(config.data, tokenizer=str(tokenizer))
    whole = dataclasses.replace(config, run_dir=str(folder / "file-whole"), data=data)
    assert train_command(whole, reporter=Recorder()).exit_code == 0
    config = dataclasses.replace(whole, run_dir=str(folder / "file-stopped"))
    assert train_command(config, reporter=Recorder(signal_at=6)).exit_code == 75
    before = tokenizer.read_text()
    # Two words change places: as many tokens, others than the run has learnt.
    tokenizer.write_text(
        before.replace('"the"', '"\0"').replace('"and"', '"the"').replace('"\0"', '"and"')
    )
    assert tokenizer.read_text() != before
    said = message(config, capsys)
    assert f"{config.run_dir}: this run was trained on data " in said
    assert "another train.npy, heldout.npy, tokenizer.json)" in said
    assert "Use the same text and tokenizer, or another run_dir" in said
    tokenizer.write_text(before)
    assert_it_goes_on(config, whole, step=6)


def test_a_batch_that_gives_no_number(stopped, capsys, monkeypatch):
    """Ids outside the vocabulary, as bad memory could make them, in one batch of a sitting."""
    config = stopped.copy("bad-batch")
    put, batches = Programs.put, []

    def put_bad(self, rows: np.ndarray):
        batches.append(rows)
        return put(self, rows + 2**20 if len(batches) == 3 else rows)

    monkeypatch.setattr(Programs, "put", put_bad)
    said = message(config, capsys)
    assert "step 9: loss nan" in said and "the checkpoint of step 6 is kept" in said
    assert finished_steps(config.run_dir)[-1] == 6
    monkeypatch.undo()
    assert_it_goes_on(config, stopped.whole, step=6)


@pytest.mark.slow
def test_a_rate_that_diverges_from_the_command_line(stopped, capsys):
    folder, config = stopped.folder, stopped.config
    wild = dataclasses.replace(config.optimizer, peak_learning_rate=1e38, clip_norm=0.0)
    config = dataclasses.replace(config, run_dir=str(folder / "wild"), optimizer=wild)
    said = message(config, capsys)
    assert "loss nan" in said or "gradient norm" in said
    assert "Repeat the command if the machine may be to blame; else begin another " in said
