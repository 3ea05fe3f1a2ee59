"""Sub-models and their draw (bert2BERT, Algorithm 2)."""

import subprocess
import sys

import numpy as np
import pytest

from b2b_jax.train.stages import TwoStageConfig, draw, full_model, sub_models


def test_sub_models_are_prefixes_trained_from_the_top():
    subs = sub_models(12, TwoStageConfig(steps=1, layers_per_block=3))
    assert [(s.first_live, s.depth) for s in subs] == [(0, 3), (3, 6), (6, 9), (9, 12)]
    assert [s.embeddings for s in subs] == ["trained", "frozen", "frozen", "frozen"]
    assert [s.output_table for s in subs] == ["trained"] * 4  # the tied decoder is of the head


@pytest.mark.parametrize(
    ("policy", "table", "embeddings", "tables"),
    [
        ("first", "embeddings", ["trained", "frozen"], ["trained", "frozen"]),
        ("never", "embeddings", ["frozen"] * 2, ["frozen"] * 2),
        ("never", "head", ["frozen"] * 2, ["trained"] * 2),
        ("always", "embeddings", ["trained"] * 2, ["trained"] * 2),
        ("first", "head", ["trained", "frozen"], ["trained"] * 2),
    ],
)
def test_policies(policy, table, embeddings, tables):
    config = TwoStageConfig(steps=1, layers_per_block=2, embeddings=policy, tied_table=table)
    subs = sub_models(4, config)
    assert [s.embeddings for s in subs] == embeddings
    assert [s.output_table for s in subs] == tables


def test_full_model_trains_everything():
    full = full_model(5)
    assert (full.first_live, full.depth, full.live_layers) == (0, 5, 5)
    assert full.embeddings == full.output_table == "trained"


def test_draw_is_uniform_and_depends_on_seed_and_step():
    draws = np.array([draw(7, step, 4) for step in range(4000)])
    counts = np.bincount(draws, minlength=4)
    # Four standard deviations of a binomial of 4000 and 1/4.
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(4000 * 0.25 * 0.75)
    assert (draws != [draw(8, step, 4) for step in range(4000)]).mean() > 0.6
    repeats = (draws[1:] == draws[:-1]).mean()
    assert abs(repeats - 0.25) < 0.04


def test_draw_is_the_same_in_another_process():
    code = "from b2b_jax.train.stages import draw; print([draw(1, s, 4) for s in range(20)])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str([draw(1, s, 4) for s in range(20)])


def test_problems_name_field_value_and_range():
    problems = TwoStageConfig(steps=11, layers_per_block=5).problems(12, 10)
    assert len(problems) == 2
    assert "two_stage.steps: found 11, expected 0 to train.steps (10)" in problems[0]
    assert "found 5" in problems[1] and "[1, 2, 3, 4, 6, 12]" in problems[1]
    assert TwoStageConfig(steps=0, layers_per_block=5).problems(12, 10) == []
