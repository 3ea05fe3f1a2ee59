"""A comparison from beginning to end: reuse, interruption, divergence, full disks, its report."""

import csv
import errno
import json
import shutil
from pathlib import Path

import pytest
import yaml
from comparisons import TINY, write_comparison, write_few
from runs import Recorder

from b2b_jax.cli import main
from b2b_jax.commands.compare import compare_command
from b2b_jax.commands.compare_dry_run import compare_dry_run
from b2b_jax.commands.plot import plot_command
from b2b_jax.compare import Journal, load_compare_config
from b2b_jax.models import ConfigError
from b2b_jax.report import ReportError
from b2b_jax.train.checkpoint import Checkpoints
from b2b_jax.train.saved import load_model


def compare(path, *, reporter=None):
    recorder = reporter or Recorder()
    code = compare_command(load_compare_config(path), command="b2b compare", reporter=recorder)
    return code, recorder.text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("comparison")


FEW = {"scratch": {}, "stackbert": {}, "aki": {}}


@pytest.fixture(scope="module")
def finished(folder):
    """Three methods, one seed, one rate."""
    path = write_few(folder, FEW)
    code, _ = compare(path)
    assert code == 0
    return path


def root(path) -> Path:
    return Path(load_compare_config(path).run_dir)


def models(path) -> dict[str, str]:
    return {
        entry.name: load_model(root(path) / run.path).fingerprint
        for entry in Journal.read(root(path)).entries
        for run in entry.runs
    }


@pytest.mark.slow
def test_every_run_is_there_and_its_loss_is_that_of_its_last_evaluation(finished):
    journal = Journal.read(root(finished))
    assert [entry.name for entry in journal.entries] == list(FEW)
    for entry in journal.entries:
        (run,) = entry.runs
        assert (run.status, run.seed, entry.rate) == ("done", 0, 0.01)
        with (root(finished) / run.path / "metrics.csv").open(newline="") as file:
            last = list(csv.DictReader(file))[-1]
        assert (last["step"], float(last["heldout_loss"])) == ("16", run.final_loss)
    (source,) = journal.sources
    assert source.cost["exact"] > 0


@pytest.mark.slow
def test_a_finished_comparison_trains_nothing_again(finished):
    before = {path: path.stat().st_mtime_ns for path in root(finished).rglob("checkpoints/*")}
    code, said = compare(finished)
    assert code == 0
    assert said.count("finished before, at step 16") == len(FEW) + 1  # and the source
    assert before == {
        path: path.stat().st_mtime_ns for path in root(finished).rglob("checkpoints/*")
    }


@pytest.mark.slow
def test_the_report_has_tables_curves_and_attention(finished, folder, capsys):
    plot_command([str(root(finished))], out=str(folder / "report"), reporter=Recorder())
    names = {str(path.relative_to(folder / "report")) for path in (folder / "report").rglob("*.*")}
    assert names >= {
        "table.md",
        "table.csv",
        "trials.csv",
        "loss_vs_flops.png",
        "loss_vs_time.png",
        "attention/source.png",
        "attention/aki.png",
        "attention/similarity_aki.csv",
    }
    table = (folder / "report" / "table.md").read_text()
    assert all(label in table for label in ("scratch", "StackBERT", "AKI"))
    assert "scratch" in capsys.readouterr().out
    with (folder / "report" / "table.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(FEW)


@pytest.mark.slow
def test_a_stopped_comparison_goes_on_and_comes_out_the_same(finished, tmp_path):
    path = write_few(tmp_path, FEW)
    text = Path(path).read_text()
    for name in ("text.txt", "data"):  # the very tokens of the other one
        text = text.replace(str(tmp_path / name), str(root(finished).parent / name))
    Path(path).write_text(text)
    for stop in (7, 3):
        code, said = compare(path, reporter=Recorder(signal_at=stop))
        assert code == 75
        assert "repeat the command to continue" in said
    code, said = compare(path)
    assert code == 0
    assert "continues from the checkpoint" in said
    assert models(path) == models(finished)


@pytest.mark.slow
def test_a_run_that_diverges_is_told_and_the_others_go_on(tmp_path):
    wild = {"method": "aki", "peak_learning_rates": [1e38], "run": {"optimizer": {"clip_norm": 0}}}
    follower = {"method": "aki", "learning_rate_of": "wilder"}
    wilder = {**wild, "peak_learning_rates": [1e37, 1e38]}
    methods = {
        "scratch": {},
        "wild": wild,
        "wilder": wilder,
        "follower": follower,
        "direct_copy": {},
    }
    path = write_few(tmp_path, methods, seeds=[0, 1])
    code, said = compare(path)
    assert code == 0
    assert "wild, seed 0, rate 1e+38: diverged at step" in said
    journal = Journal.read(root(path))
    run, other = journal.entry("wild").runs
    assert {run.status, other.status} == {"diverged"}  # one rate is not chosen, so no seed is left
    assert len(journal.entry("wilder").runs) == 2
    assert not journal.entry("follower").runs
    assert "follower: left out, since wilder diverged at every learning rate" in said
    assert journal.entry("direct_copy").runs[0].status == "done"
    _, again = compare(path)
    assert "loss nan" not in again  # it is not tried twice, but told again
    assert f"diverged at step {run.diverged_at}" in again
    plot_command([str(root(path))], out="", reporter=Recorder())
    table = (root(path) / "table.md").read_text()
    assert f"diverged at step {run.diverged_at}" in table
    assert "is not complete, since wilder diverged at every learning rate" in table


@pytest.mark.slow
def test_a_full_disk_is_told_and_costs_nothing(tmp_path, monkeypatch):
    path = write_few(tmp_path, {"scratch": {}, "stackbert": {}})
    save, calls = Checkpoints.save, []

    def fails_late(self, *args, **kwargs):
        calls.append(self)
        if len(calls) > 1:  # scratch is saved
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, *args, **kwargs)

    monkeypatch.setattr(Checkpoints, "save", fails_late)
    with pytest.raises(ConfigError, match=r"the disk is full .* free some space and repeat"):
        compare(path)
    monkeypatch.setattr(Checkpoints, "save", save)
    code, said = compare(path)
    assert code == 0
    assert said.count("finished before") == 1

    def nearly_full(_):
        return shutil._ntuple_diskusage(100, 90, 10)  # pyright: ignore

    shutil.rmtree(root(path) / "runs")
    monkeypatch.setattr("shutil.disk_usage", nearly_full)
    with pytest.raises(ConfigError, match="the disk is full"):
        compare(path)
    assert not list((root(path) / "runs").glob("*/checkpoints"))


@pytest.mark.slow
def test_missing_sources_are_named_where_they_are_not_to_be_trained(finished, tmp_path):
    path = write_few(tmp_path, {"scratch": {}, "aki": {}}, train_missing="off")
    with pytest.raises(ConfigError, match=r"not trained.*\n  main: .*main-seed0"):
        compare(path)
    assert not (root(path) / "runs").exists()
    (source,) = Journal.read(root(finished)).sources
    given = str(root(finished) / source.path)
    values = yaml.safe_load(Path(path).read_text())
    values["base"]["data"] = yaml.safe_load(Path(finished).read_text())["base"]["data"]
    values["sources"] = {"main": {"folder": given}}
    Path(path).write_text(yaml.safe_dump(values, sort_keys=False))
    code, _ = compare(path)
    assert code == 0
    assert models(path)["aki"] == models(finished)["aki"]
    (record,) = Journal.read(root(path)).sources
    assert record.cost["exact"] == source.cost["exact"]


def test_bad_input_ends_in_words_at_the_command_line(tmp_path, capsys):
    path = write_few(tmp_path, {"akki": {}})
    assert main(["compare", str(path)]) == 1
    assert main(["compare", str(tmp_path / "nothing.yaml")]) == 1
    said = capsys.readouterr().err
    assert "unknown method 'akki'" in said
    assert "nothing.yaml: cannot be read" in said
    assert "Traceback" not in said


def test_a_damaged_journal_is_named(tmp_path):
    (tmp_path / "comparison.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(ReportError, match=r"comparison\.json: cannot be read"):
        plot_command([str(tmp_path)], out="", reporter=Recorder())


@pytest.mark.slow
def test_a_dry_run_compiles_every_step_and_trains_nothing(tmp_path, capsys):
    path = write_few(tmp_path, {"scratch": {}, "bert2bert": {}, "inherit": {}})
    reporter = Recorder()
    compare_dry_run(load_compare_config(path), reporter=reporter)
    assert "scratch: compiled whole model in " in reporter.text
    assert "compiled bottom 2, top 1 trained in " in reporter.text
    assert "whole model, taught" in reporter.text
    said = capsys.readouterr().out
    assert "bert2BERT" in said
    assert not root(path).exists()


@pytest.mark.slow
def test_a_dry_run_of_gpt_has_kept_predictions_of_every_token(tmp_path, capsys):
    inherit = {"top_k": 5, "learning_rate_of": "scratch"}
    path = write_comparison(tmp_path, of="tiny_gpt", methods={"inherit": inherit})
    reporter = Recorder()
    compare_dry_run(load_compare_config(path), reporter=reporter)
    assert "whole model, taught" in reporter.text
    assert "Knowledge Inheritance" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_tiny_comparison_in_small(tmp_path):
    """Every method, one seed, two rates; the machinery, not the science."""
    path = write_comparison(
        tmp_path,
        of="tiny_ablations",
        seeds=[0],
        sources={
            "small": {
                "model": {
                    "vocab_size": 300,
                    "max_position_embeddings": 16,
                    **TINY,
                    "hidden_size": 16,
                    "num_attention_heads": 2,
                    "intermediate_size": 32,
                }
            }
        },
    )
    code, _ = compare(path)
    assert code == 0
    journal = Journal.read(root(path))
    assert all(run.status == "done" for entry in journal.entries for run in entry.runs)
    runs = {entry.name: len(entry.runs) for entry in journal.entries}
    swept = {"scratch", "aki", "fpi", "direct_copy"}
    assert {runs.pop(name) for name in swept} == {2}
    assert set(runs.values()) == {1}
    for entry in journal.entries:
        losses = {run.rate: run.final_loss for run in entry.runs if run.seed == 0}
        if entry.name in swept:
            assert losses[entry.rate] == min(losses.values())
    assert {entry.rate for entry in journal.entries} <= {0.01, 0.03}
    for name in ("bert2bert", "net2net"):
        assert journal.entry(name).rate == journal.entry("aki").rate
    plot_command([str(root(path))], out="", reporter=Recorder())
    for name in ("table2", "table3", "table4"):
        assert (root(path) / "tables" / name / "loss_vs_flops.png").exists()
    first = (root(path) / "first_losses.md").read_text().splitlines()
    assert len(first) == 2 + 2 * 2  # two sources to two sizes
    with (root(path) / "first_losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    doubled = {
        row["method"]: float(row["heldout_loss"])
        for row in rows
        if row["target"] == "(4, 32)" and row["source"] == "main (4, 16)" and row["seed"] == "0"
    }
    assert doubled["FPI"] == pytest.approx(doubled["original"], abs=1e-4)
    assert doubled["rand"] > doubled["DirectCopy"] > doubled["original"]
