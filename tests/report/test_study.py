"""Costs and savings of many methods over seeds, by hand; tables and pictures."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from realistic_study import realistic_study

from b2b_jax.report.runs import Curve
from b2b_jax.report.study import MethodResult, Study, Trial
from b2b_jax.report.study_bars import savings_figure
from b2b_jax.report.study_plot import mean_curve, study_figure
from b2b_jax.report.study_rows import savings_of_chance, study_rows
from b2b_jax.report.study_table import (
    footnote,
    markdown_table,
    methods_csv,
    rich_table,
    sweep_table,
    trials_csv,
)
from b2b_jax.report.study_write import write_study

LAYERS = 2


def trial(seed, losses, *, layers=None, status="done", at=None, source=None) -> Trial:
    """A run that costs 10 exact FLOPs, 20 of ELECTRA's and a second per evaluation."""
    steps = np.arange(len(losses), dtype=float)
    return Trial(
        seed=seed,
        learning_rate=1e-3,
        curve=Curve(
            steps=steps,
            loss=np.array(losses, dtype=float),
            sub_model_mean=np.full(len(losses), np.nan),
            exact=10 * steps,
            electra=20 * steps,
            seconds=steps,
            layers=np.array(layers or [LAYERS] * len(losses), dtype=float),
        ),
        status=status,
        diverged_at=at,
        source_cost=source or {},
    )


def method(name, *trials, **rest) -> MethodResult:
    return MethodResult(name, name.upper(), 1e-3, trials, rest.pop("sweep", {}), **rest)


# Seed 1 ends at 3 after 40 FLOPs, seed 2 at 2 after 40.
SCRATCH = method("scratch", trial(1, [9, 7, 5, 4, 3]), trial(2, [9, 7, 5, 4, 2]))
SOURCE = {"exact": 8.0, "electra": 4.0, "seconds": 1.0}


def study(*methods, scratch: MethodResult | None = SCRATCH) -> Study:
    return Study("test", LAYERS, scratch, methods, {})


def only_row(*trials, scratch: MethodResult | None = SCRATCH):
    return study_rows(study(method("m", *trials), scratch=scratch))[-1]


def test_each_seed_is_held_against_scratch_of_its_seed():
    # Seed 1 passes 3 halfway between 4 at 10 and 2 at 20; seed 2 passes 2 at 20.
    row = only_row(trial(1, [6, 4, 2, 1]), trial(2, [6, 4, 2, 1]))
    assert [one.savings["exact"].cost for one in row.trials] == pytest.approx([15, 20])
    exact, electra, seconds = (row.costs[unit] for unit in ("exact", "electra", "seconds"))
    assert exact.cost.mean == pytest.approx(17.5)
    assert exact.cost.std == pytest.approx(np.sqrt(12.5))  # 2 * 2.5^2 / (2 - 1)
    assert exact.saving.mean == pytest.approx((25 / 40 + 20 / 40) / 2)
    assert exact.saving.std == pytest.approx(0.0625 * np.sqrt(2))
    assert electra.cost.mean == pytest.approx(35) and seconds.cost.mean == pytest.approx(1.75)
    assert row.missed == 0


def test_seeds_that_scratch_lacks_are_held_against_its_mean():
    longer = method("scratch", trial(1, [9, 7, 5, 4, 3]), trial(2, [9, 7, 5, 4, 3, 2]))
    row = only_row(trial(7, [6, 4, 2, 1]), scratch=longer)
    (one,) = row.trials
    assert one.baseline.target == 2.5 and not one.baseline.paired
    assert one.savings["exact"].cost == pytest.approx(17.5)
    assert one.savings["exact"].saving == pytest.approx(1 - 17.5 / 45)  # of 40 and 50
    assert "mean of scratch" in footnote(study(method("m", one.trial), scratch=longer))


def test_the_first_crossing_counts_and_the_loss_may_rise_again():
    assert only_row(trial(1, [6, 2, 5, 2])).costs["exact"].cost.mean == pytest.approx(7.5)


def test_one_seed_has_no_deviation():
    row = only_row(trial(1, [6, 4, 2, 1]))
    assert row.costs["exact"].saving.std is None and row.final_loss.std is None
    text = markdown_table(study(row.method))
    assert "| 62.5 % |" in text and "| 1.000 |" in text


def test_the_source_is_counted_where_a_method_uses_one():
    row = only_row(trial(1, [6, 4, 2, 1], source=SOURCE))
    assert row.costs["exact"].saving_with_source.mean == pytest.approx(1 - 23 / 40)
    assert row.costs["electra"].saving_with_source.mean == pytest.approx(1 - 34 / 80)
    without = only_row(trial(1, [6, 4, 2, 1])).costs["exact"]
    assert without.saving_with_source == without.saving
    unknown = only_row(trial(1, [6, 4, 2, 1], source={"exact": 8.0})).costs["seconds"]
    assert unknown.saving_with_source is None


def test_models_that_still_grow_reach_nothing():
    row = only_row(trial(1, [6, 2, 1, 4, 2], layers=[1, 1, 1, 2, 2]))
    assert row.costs["exact"].cost.mean == pytest.approx(35)  # from 4 at 30 to 2 at 40
    assert row.first_loss is None and row.final_loss.mean == 2
    assert only_row(trial(1, [6, 2, 1], layers=[1, 1, 1])).missed == 1


def test_not_reached_is_said_with_the_total():
    none = method("none", trial(1, [6, 5, 4]), trial(2, [6, 5, 4]))
    some = method("some", trial(1, [6, 4, 2, 1]), trial(2, [6, 4, 3, 3]))
    rows = study_rows(study(none, some))
    assert (rows[1].missed, rows[2].missed) == (2, 1)
    assert rows[1].costs["exact"].cost.mean == 20
    assert rows[2].costs["exact"].cost.mean == pytest.approx((15 + 30) / 2)
    lines = markdown_table(study(none, some)).splitlines()
    assert "| (2.00 ± 0.00)e1, not reached (2 of 2) | not reached |" in lines[3]
    assert "| (2.25 ± 1.06)e1, not reached (1 of 2) | ≤ 43.8 ± 26.5 % |" in lines[4]
    assert "lower bound" in lines[-1]


def test_diverged_runs_are_in_no_mean_and_said():
    lost = trial(2, [6, 1, np.nan], status="diverged", at=23)
    row = only_row(trial(1, [6, 4, 2, 1]), lost)
    assert row.counted == 1 and row.final_loss.mean == 1 and row.final_loss.std is None
    assert row.costs["exact"].cost.mean == pytest.approx(15)
    assert row.trials[1].savings["exact"].saving is None
    text = markdown_table(study(row.method, method("all", lost)))
    assert "| 1.000; seed 2 diverged at step 23 |" in text
    assert "| ALL | 0.001 (not swept) | - | seed 2 diverged at step 23 | - |" in text


def test_a_scratch_run_that_diverged_is_no_target():
    scratch = method("scratch", SCRATCH.trials[0], trial(2, [9, 1], status="diverged", at=15))
    row = only_row(trial(2, [6, 4, 2]), scratch=scratch)
    assert row.trials[0].baseline.target == 3 and not row.trials[0].baseline.paired


def test_unfinished_runs_count_nowhere_even_if_they_got_there():
    """Those that get there early would be the lucky ones."""
    short = trial(1, [6, 5], status="unfinished")
    there = trial(2, [6, 4, 2], status="unfinished")
    row = only_row(short, there)
    assert [one.counted for one in row.trials] == [False, False]
    assert row.costs["exact"].cost is None and row.missed == 0
    assert row.final_loss is None
    assert "seed 1 unfinished at step 1, seed 2 unfinished at step 2" in markdown_table(
        study(row.method)
    )
    some = only_row(trial(1, [6, 4, 2, 1]), there)
    assert "| 62.5 % (1 of 2 seeds) |" in markdown_table(study(some.method))


def test_final_losses_are_held_against_scratch_of_the_same_seed():
    row = only_row(trial(1, [6, 4, 2, 1]), trial(2, [6, 4, 2, 1.5]))
    assert row.gain.mean == pytest.approx((1 - 3 + 1.5 - 2) / 2)
    assert row.gain.std == pytest.approx(abs((1 - 3) - (1.5 - 2)) / np.sqrt(2))
    assert "| -1.250 ± 1.061 |" in markdown_table(study(row.method))


def test_chance_is_what_scratch_saves_against_itself():
    """Seed 1 ends at 3 after 40, seed 2 at 2 after 50: it passes 3 at 40 of 40."""
    scratch = method("scratch", trial(1, [9, 7, 5, 4, 3]), trial(2, [9, 7, 4, 2, 2, 2]))
    chance = savings_of_chance(study(scratch=scratch))
    # Seed 1 never gets to 2; seed 2 passes 3 halfway between 20 and 30.
    assert chance.mean == pytest.approx((0 + 1 - 25 / 40) / 2)
    assert chance.count == 2
    assert "what chance shows" in footnote(study(scratch=scratch))
    assert savings_of_chance(study(scratch=method("scratch", trial(1, [9, 3])))) is None


def test_scratch_costs_its_total_even_if_its_curve_dipped_before():
    scratch = method("scratch", trial(1, [9, 2, 4, 3]))
    row = study_rows(study(scratch=scratch))[0]
    assert row.costs["exact"].cost.mean == 30 and row.costs["exact"].saving.mean == 0


def test_without_scratch_losses_are_shown_and_no_savings():
    runs = method("m", trial(1, [6, 4]), trial(2, [6, 2]))
    line = markdown_table(study(runs, scratch=None)).splitlines()[2]
    assert (
        line == "| M | 0.001 (not swept) | 6.000 ± 0.000 | 3.000 ± 1.414 | - | - | - | - | - | - |"
    )


def test_the_sweep_names_rates_chosen_and_diverged():
    swept = method("a", trial(1, [6, 2]), sweep={5e-4: 3.1, 1e-3: 2.0, 2e-3: None})
    edge = method("b", trial(1, [6, 2]), sweep={1e-3: 2.0, 2e-3: 2.5})
    borrowed = method("c", trial(1, [6, 2]), rate_from="a", rate_from_label="A")
    lines = sweep_table(study(swept, edge, borrowed)).splitlines()
    assert lines[0] == "| final loss at a peak learning rate of | 0.0005 | 0.001 | 0.002 |"
    assert lines[2:4] == ["| A | 3.100 | **2.000** | diverged |", "| B | - | **2.000** | 2.500 |"]
    assert lines[-1].endswith("may lie beyond: B.")
    assert "| C | 0.001 (as A) |" in markdown_table(study(swept, borrowed))
    assert sweep_table(study()) == ""


def test_csv_holds_every_number_unrounded():
    third = method("m", trial(1, [6, 4, 1, 0.5], source=SOURCE), trial(2, [6, 4, 1, 0.5]))
    text = study(third)
    (_, row) = csv.DictReader(io.StringIO(methods_csv(text)))
    assert float(row["saving_exact_std"]) == pytest.approx(1 / 12 / np.sqrt(2), rel=1e-14)
    assert (row["trials"], row["counted"], row["not_reached"]) == ("2", "2", "0")
    runs = list(csv.DictReader(io.StringIO(trials_csv(text))))
    assert [(run["name"], run["seed"]) for run in runs[2:]] == [("m", "1"), ("m", "2")]
    saving = float(runs[2]["saving_with_source_exact"])
    assert saving == pytest.approx(1 - (10 + 10 / 3 + 8) / 40, rel=1e-14)
    assert (runs[2]["target"], runs[3]["target"], runs[3]["source_exact"]) == ("3.0", "2.0", "")


def test_the_footnote_says_who_used_which_seeds():
    assert "over seeds (1, 2)" in footnote(study(method("m", trial(1, [6]), trial(2, [6]))))
    assert "(SCRATCH: 1, 2; M: 1)" in footnote(study(method("m", trial(1, [6, 2]))))


def test_seeds_are_averaged_at_equal_steps_to_the_end_of_the_slowest():
    slow = trial(2, [6, 6, 4], layers=[1, 1, 2])
    slow = replace(slow, curve=replace(slow.curve, exact=np.array([0.0, 20.0, 60.0])))
    lost = trial(3, [99, 99], status="diverged", at=1)
    runs = (trial(1, [8, 4, 2, 1], layers=[1, 2, 2, 2]), slow, lost)
    mean = mean_curve(runs, "exact", num_layers=LAYERS)
    np.testing.assert_allclose(mean.cost, [0, 15, 40])  # of the steps that both have
    np.testing.assert_allclose(mean.loss, [7, 5, 3])
    np.testing.assert_allclose(mean.deviation, np.sqrt(2) * np.array([1, 1, 1]))
    assert mean.growing.tolist() == [True, True, False]
    unfinished = (replace(slow, status="unfinished"), lost)
    np.testing.assert_allclose(mean_curve(unfinished, "exact", num_layers=LAYERS).cost, [0, 15])


@pytest.fixture(scope="module")
def realistic():
    return realistic_study()


def test_curves_of_all_methods_are_told_apart(realistic):
    figure = study_figure(realistic, x="exact")
    full, zoom = figure.axes
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[0] == "scratch" and len(labels) == len(set(labels)) == 13
    assert any(label.startswith("scratch's final loss (5.3") for label in labels)
    lines = legend.get_lines()[:11]
    # Without colour the markers tell all apart, without markers colour and dashes.
    assert len({line.get_marker() for line in lines}) == 11
    assert len({(line.get_color(), line.is_dashed()) for line in lines}) == 11
    low, high = zoom.get_ylim()
    target = np.mean([run.curve.loss[-1] for run in realistic.scratch.trials])
    assert low < target < high < 6 and full.get_ylim()[1] > 11
    # MSLT and random growth get no marker on the dashed line.
    on_line = [line for line in zoom.lines if len(line.get_xdata()) == 1]
    assert len(on_line) == 8 and all(line.get_ydata()[0] == target for line in on_line)
    assert figure.get_size_inches()[0] == 9 and "seconds" in str(
        study_figure(realistic, x="seconds").get_supxlabel()
    )


def test_bars_say_what_was_not_reached(realistic):
    (axes,) = savings_figure(realistic).axes
    texts = [text.get_text() for text in axes.texts]
    assert "not reached (2 of 2); seed 2 diverged at step 437" in texts
    assert "not reached (3 of 3)" in texts and len(texts) == 2 + 2 * 8
    assert axes.get_yticklabels()[0].get_text() == "DirectCopy"


@pytest.mark.parametrize(
    "odd",
    [
        study(),
        study(scratch=None),
        study(method("m", trial(1, [6, 4, 2, 1])), scratch=None),
        study(method("m", trial(1, [6.0]), trial(2, [np.nan], status="diverged", at=1))),
        study(method("m", trial(3, [], status="diverged", at=1))),
        study(method("m", trial(1, [6, 5, 4], layers=[1, 1, 1], status="unfinished"))),
    ],
)
def test_odd_studies_are_drawn_too(odd, tmp_path):
    for figure in (study_figure(odd, x="exact"), savings_figure(odd)):
        figure.savefig(tmp_path / "picture.png", dpi=20)
    assert rich_table(odd).row_count == len(odd.methods) + (odd.scratch is not None)
    assert methods_csv(odd) and trials_csv(odd)


def test_all_files_are_written_or_none(tmp_path, monkeypatch):
    small = study(method("m", trial(1, [6, 4, 2, 1]), sweep={1e-3: 1.0}))
    paths = write_study(small, tmp_path / "out")
    assert [path.name for path in paths] == [
        "table.md",
        "table.csv",
        "trials.csv",
        "loss_vs_flops.png",
        "loss_vs_time.png",
        "savings.png",
    ]
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    assert "| M | **1.000** |" in paths[0].read_text() and paths[3].read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr("b2b_jax.report.study_write.savings_figure", lambda study: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_study(small, tmp_path / "none")
    assert not (tmp_path / "none").exists()
