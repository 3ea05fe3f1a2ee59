"""Reading runs, crossing points, tables and the picture."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from b2b_jax.report import ReportError, read_runs, write_report
from b2b_jax.report.plot import comparison_figure
from b2b_jax.report.savings import first_crossing, savings_table

MODEL = {
    "family": "bert",
    "vocab_size": 10,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
}


def write_run(folder: Path, losses, *, model=MODEL, init="", stage_one=0, lineage=None) -> Path:
    """A run that costs 10 exact FLOPs, 20 of ELECTRA's and a second per evaluation."""
    folder.mkdir(parents=True)
    config = {
        "model": model,
        "init": init,
        "train": {"steps": len(losses) - 1},
        "two_stage": {"steps": stage_one},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    header = "step,heldout_loss,heldout_submodel_mean,flops_exact,flops_electra,seconds"
    lines = [header]
    for step, loss in enumerate(losses):
        mean = loss + 0.5 if step <= stage_one and stage_one else ""
        lines.append(f"{step},{loss},{mean},{10 * step},{20 * step},{step}")
        lines.append(f"{step},,,{10 * step + 5},,{step}.5")  # a row without an evaluation
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if lineage:
        (folder / "lineage.json").write_text(json.dumps(lineage))
    return folder


@pytest.fixture
def demo(tmp_path):
    small = {**MODEL, "hidden_size": 4}
    lineage = {
        "method": "aki",
        "source": "source",
        "source_flops": {"exact": 30.0, "electra": 10.0},
        "source_seconds": 2.0,
    }
    write_run(tmp_path / "source", [9.0, 5.0, 4.0], model=small)
    write_run(tmp_path / "scratch", [9.0, 7.0, 5.0, 4.0, 3.0])
    write_run(tmp_path / "b2b", [6.0, 4.0, 2.0, 1.0, 0.5], init="g", stage_one=1, lineage=lineage)
    (tmp_path / "grown").mkdir()
    (tmp_path / "grown" / "growth_plan.json").write_text("{}")
    (tmp_path / "report.png").write_text("an earlier picture")
    return tmp_path


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ([4.0, 3.0, 1.0], 15.0),
        ([2.0, 1.0, 0.5], 0.0),
        ([4.0, 3.0, 2.5], None),
        ([4.0, 1.0, 3.0], 20 / 3),  # the first crossing counts
    ],
)
def test_first_crossing(loss, expected):
    found = first_crossing(np.array([0.0, 10.0, 20.0]), np.array(loss), target=2.0)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_savings_with_and_without_the_source(demo):
    comparison = read_runs(sorted(demo.iterdir()))
    assert (comparison.scratch.label, comparison.grown[0].label) == ("scratch", "AKI + two-stage")
    assert [source.label for source in comparison.sources] == ["source model"]
    assert len(comparison.skipped) == 2
    scratch, grown = savings_table(comparison)
    assert scratch.savings["exact"].cost == 40
    exact, electra, seconds = (grown.savings[u] for u in ("exact", "electra", "seconds"))
    assert exact.cost == pytest.approx(15)  # 3.0 lies halfway between 4.0 at 10 and 2.0 at 20
    assert exact.saving == pytest.approx(1 - 15 / 40)
    assert exact.saving_with_source == pytest.approx(1 - 45 / 40)
    assert electra.saving_with_source == pytest.approx(1 - 40 / 80)
    assert seconds.saving == pytest.approx(1 - 1.5 / 4)
    assert (grown.first_loss, grown.final_loss, grown.reached) == (6.0, 0.5, True)


def test_a_model_that_still_grows_reaches_nothing(demo):
    comparison = read_runs(sorted(demo.iterdir()))
    (run,) = comparison.grown
    curve = replace(run.curve, layers=np.array([1.0, 1.0, 1.0, 2.0, 2.0]))
    grown = savings_table(replace(comparison, grown=(replace(run, curve=curve),)))[1]
    assert grown.savings["exact"].cost == 30  # the first evaluation of both layers


def test_not_reached_is_said_with_the_total(tmp_path):
    write_run(tmp_path / "scratch", [9.0, 3.0])
    write_run(tmp_path / "grown", [8.0, 5.0, 4.0], init="g", lineage={"method": "fpi"})
    report = write_report([tmp_path / "scratch", tmp_path / "grown"], tmp_path / "out")
    row = report.rows[1]
    assert not row.reached and row.savings["exact"].cost == 20
    assert "20 (not reached)" in (tmp_path / "out" / "table.md").read_text()


def test_report_writes_picture_and_tables(demo):
    report = write_report(sorted(demo.iterdir()), demo)
    assert [path.name for path in report.files] == ["report.png", "table.md", "table.csv"]
    assert (demo / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "AKI + two-stage" in (demo / "table.csv").read_text()
    assert len((demo / "table.md").read_text().splitlines()) == 4


def test_picture_marks_growth_stage_boundary_and_saving(demo):
    figure = comparison_figure(read_runs(sorted(demo.iterdir())))
    axes = figure.axes[0]
    texts = " | ".join(text.get_text() for text in axes.texts)
    for part in ("right after growth: 6.00", "stage 1", "62 % saved"):
        assert part in texts
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        "source model",
        "scratch",
        "scratch's final loss (3.000)",
        "AKI + two-stage",
        "AKI + two-stage: mean of sub-models",
    ]
    assert "FLOPs" in axes.get_xlabel() and "nats" in axes.get_ylabel()


def test_broken_runs_are_all_named(demo):
    (demo / "scratch" / "metrics.csv").write_text("step,heldout_loss,seconds\n")
    (demo / "source" / "config.yaml").unlink()
    with pytest.raises(ReportError) as error:
        read_runs([demo / "scratch", demo / "source", demo / "b2b", demo / "nothing"])
    for part in ("scratch: metrics.csv holds no evaluation", "source: ", "nothing: no such folder"):
        assert part in str(error.value)


def test_no_run_at_all(demo):
    with pytest.raises(ReportError, match="None of these folders"):
        read_runs([demo / "grown"])


def test_two_baselines_are_ambiguous(demo):
    write_run(demo / "scratch2", [9.0, 3.0])
    with pytest.raises(ReportError, match="More than one run"):
        read_runs([demo / "scratch", demo / "scratch2", demo / "b2b"])


def test_runs_that_are_evaluated_differently_are_refused(demo):
    path = demo / "b2b" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["train"]["masked_positions"] = 7
    config["data"] = {"paths": ["other.txt"], "prepared_dir": "elsewhere"}
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ReportError) as error:
        read_runs(sorted(demo.iterdir()))
    assert "train.masked_positions is 7" in str(error.value)
    assert "data.paths is ['other.txt']" in str(error.value)
    assert "prepared_dir" not in str(error.value)
