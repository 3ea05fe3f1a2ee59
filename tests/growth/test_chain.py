"""Two growths in a row equal one composed growth."""

import numpy as np
import pytest
import tiny

from b2b_jax.growth import (
    GrowthError,
    GrowthPlan,
    compose_plans,
    grow,
    mean_pad_epsilon,
    plan_growth,
    shrink,
)
from b2b_jax.tree import flatten


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "first", "second"),
    [
        ("bert", {}, {}),
        ("gpt2", {"mapping": "uniform"}, {"mapping": "balanced", "depth": "interpolate"}),
        ("gpt2", {"split": "unequal", "depth": "middle"}, {"depth": "stack"}),
        ("gpt2", {"depth": (3, 1, 1, 0, 2)}, {"mapping": "uniform"}),
    ],
    ids=str,
)
def test_two_steps_equal_the_composed_plan(family, first, second):
    small = tiny.config(family)
    middle = tiny.uneven(small, heads=5, neurons=30, num_hidden_layers=5)
    large = tiny.uneven(middle, heads=7, neurons=64, num_hidden_layers=9)
    one = plan_growth(small, middle, method="fpi", **first)
    other = plan_growth(middle, large, method="fpi", **second)
    both = compose_plans(one, other)
    assert GrowthPlan.from_json(both.to_json()) == both
    assert (both.source, both.target) == (small.to_dict(), large.to_dict())
    params = tiny.random_params(small)
    stepwise = grow(grow(params, one), other)
    at_once = grow(params, both)
    for path, leaf in flatten(stepwise).items():
        np.testing.assert_array_max_ulp(
            np.asarray(flatten(at_once)[path]), np.asarray(leaf), maxulp=2
        )
    # The composed plan predicts no more than the two steps do.
    assert both.is_exact == (one.is_exact and other.is_exact)
    for path, leaf in flatten(shrink(at_once, both)).items():
        np.testing.assert_array_max_ulp(
            np.asarray(leaf), np.asarray(flatten(params)[path]), maxulp=1
        )


def test_doubling_twice_is_growing_fourfold_bit_for_bit():
    small = tiny.config("gpt2")
    middle = tiny.wider(small, neurons=44, num_hidden_layers=6)
    large = tiny.wider(middle, neurons=88, num_hidden_layers=9)
    steps = [
        plan_growth(*ends, method="fpi", depth="identity")
        for ends in ((small, middle), (middle, large))
    ]
    both = compose_plans(*steps)
    assert both.is_exact
    assert both.split == "equal"
    params = tiny.random_params(small)
    tiny.assert_trees_equal(grow(grow(params, steps[0]), steps[1]), grow(params, both))
    inputs = tiny.batch(small)
    before = tiny.outputs(small, params, inputs)
    assert tiny.gap(tiny.outputs(large, grow(params, both), inputs), before) < 1e-5


def test_what_does_not_compose():
    small = tiny.config("gpt2")
    middle, large = tiny.wider(small), tiny.wider(tiny.wider(small))
    fpi = plan_growth(small, middle, method="fpi")
    padded = tiny.uneven(middle, heads=8)
    padded = padded.replace(layer_norm_eps=mean_pad_epsilon(1e-5, 30, 40))
    for second, message in (
        (plan_growth(middle, large, method="aki"), "the second is an 'aki' plan"),
        (plan_growth(middle, large, method="fpi", noise=1.0), "the second adds noise"),
        (plan_growth(middle, padded, method="fpi", norm="mean_pad"), "norms by 'mean_pad'"),
        (fpi, "the first ends at"),
        (
            plan_growth(middle, middle.replace(vocab_size=70), method="fpi"),
            "the second makes entries that are no copies",
        ),
    ):
        with pytest.raises(GrowthError, match=message):
            compose_plans(fpi, second)
    deeper = plan_growth(small, small.replace(num_hidden_layers=5), method="fpi")
    silent = plan_growth(
        small.replace(num_hidden_layers=5),
        small.replace(num_hidden_layers=7),
        method="fpi",
        depth="identity",
    )
    with pytest.raises(GrowthError, match="only one of them silences"):
        compose_plans(deeper, silent)
