"""Depth: layer orders, and which of them keep the function."""

import jax
import numpy as np
import oracle
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from b2b_jax.growth import GrowthError, GrowthPlan, grow, plan_growth
from b2b_jax.growth.depth import ORDERS, interpolate, middle, silent_layers, stack
from b2b_jax.tree import flatten

DEPTHS = st.integers(1, 24).flatmap(lambda s: st.tuples(st.just(s), st.integers(s, 99)))


@given(DEPTHS)
def test_stack_is_algorithm_1(depths):
    assert stack(*depths).indices.tolist() == oracle.algorithm_1(*depths)


@pytest.mark.parametrize(
    ("source", "target", "order"),
    [
        (3, 3, [0, 1, 2]),
        (3, 4, [0, 1, 2, 2]),
        (3, 5, [0, 1, 2, 1, 2]),
        (3, 6, [0, 1, 2, 0, 1, 2]),
        (3, 8, [0, 1, 2, 0, 1, 2, 1, 2]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_the_remainder_comes_from_the_top(source, target, order):
    assert stack(source, target).indices.tolist() == order


@given(DEPTHS)
def test_interpolation_keeps_the_order_and_spreads_evenly(depths):
    source, target = depths
    order = interpolate(source, target)
    assert sorted(order.indices.tolist()) == order.indices.tolist()
    assert order.counts.min() >= 1
    assert order.counts.max() - order.counts.min() <= 1


@given(DEPTHS, st.sampled_from(sorted(ORDERS)))
def test_every_source_layer_speaks_once(depths, name):
    order = ORDERS[name](*depths)
    heard = order.indices[~silent_layers(order)]
    assert sorted(heard.tolist()) == list(range(depths[0]))


@pytest.mark.parametrize("depth", ["stack", "interpolate", "middle"])
@pytest.mark.parametrize("layers", [4, 7, 11])
def test_layers_are_copied_in_that_order(depth, layers):
    source = tiny.config()
    plan = plan_growth(source, source.replace(num_hidden_layers=layers), method="fpi", depth=depth)
    params = tiny.random_params(source)
    order = ORDERS[depth](4, layers).indices
    tiny.assert_trees_equal(
        tiny.map_leaves(np.asarray, grow(params, plan)),
        oracle.stacked(tiny.map_leaves(np.asarray, params), order),
    )
    assert plan.is_exact == (layers == 4)


@pytest.mark.parametrize(("layers", "factor"), [(4, 2), (5, 1), (7, 2), (13, 1)])
def test_identity_layers_are_exact_before_a_pre_norm_model(layers, factor):
    source = tiny.config("gpt2")
    target = tiny.wider(source, factor, num_hidden_layers=layers)
    plan = plan_growth(source, target, method="fpi", depth="identity")
    assert plan.is_exact
    params, inputs = tiny.random_params(source), tiny.batch(source)
    grown = grow(params, plan)
    before, after = (
        oracle.forward(cfg, p, **inputs) for cfg, p in ((source, params), (target, grown))
    )
    assert tiny.gap(after, before) < 1e-5
    silent = np.flatnonzero(plan.silent_layers)
    assert len(silent) == layers - 4
    for path, leaf in flatten(grown).items():
        if path.startswith("layers/"):
            zero = "attention/out" in path or "mlp/down" in path
            assert (np.asarray(leaf)[silent] == 0).all() == (zero or not len(silent)), path
            assert (np.abs(leaf).reshape(layers, -1).max(-1) > 0).sum() == (4 if zero else layers)


def test_identity_layers_are_refused_after_a_post_norm_model():
    source = tiny.config()
    with pytest.raises(GrowthError, match="pre-norm"):
        plan_growth(source, source.replace(num_hidden_layers=5), method="fpi", depth="identity")
    assert plan_growth(source, tiny.wider(source), method="fpi", depth="identity").is_exact


@pytest.mark.parametrize("method", ["fpi", "aki"])
def test_no_array_is_shared(method):
    """Not with the source, not between leaves, also where nothing grew."""
    source = tiny.config()
    params = tiny.random_params(source)
    before = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)}
    for target in (source, source.replace(num_hidden_layers=8), tiny.wider(source)):
        grown = jax.tree.leaves(grow(params, plan_growth(source, target, method=method)))
        after = [leaf.unsafe_buffer_pointer() for leaf in grown]
        assert not before & set(after)
        assert len(set(after)) == len(after)


def test_numpy_parameters_are_copied_too():
    source = tiny.config()
    params = tiny.map_leaves(np.array, tiny.random_params(source))
    grown = grow(params, plan_growth(source, source, method="fpi"))
    params["layers"]["mlp"]["up"]["bias"][:] = 7
    assert not (np.asarray(grown["layers"]["mlp"]["up"]["bias"]) == 7).any()


@pytest.mark.parametrize("depths", [(6, 8), (5, 6), (4, 8), (3, 11), (4, 4), (1, 3)])
def test_the_middle_is_repeated_and_the_ends_stay(depths):
    source, target = depths
    order = middle(source, target).indices
    assert len(order) == target and order[0] == 0 and order[-1] == source - 1
    twice = np.flatnonzero(np.bincount(order, minlength=source) > 1)
    below, above = (twice[0], source - 1 - twice[-1]) if twice.size else (0, 0)
    assert above - below in (0, 1)


def test_an_explicit_list_of_layers():
    source = tiny.config("gpt2", num_hidden_layers=3)
    target = source.replace(num_hidden_layers=5)
    plan = plan_growth(source, target, method="fpi", depth=(0, 2, 2, 1, 0))
    assert plan.maps["layers"].indices.tolist() == [0, 2, 2, 1, 0]
    assert GrowthPlan.from_json(plan.to_json()) == plan
    assert "by explicit" in plan.why_inexact[0]
    for wrong in ((0, 1, 2), (0, 1, 2, 3, 0)):
        with pytest.raises(GrowthError, match=r"expected 5 of 0 to 2"):
            plan_growth(source, target, method="fpi", depth=wrong)
