"""Function preservation: when the grown model computes the same, and whether the plan knows."""

import dataclasses

import numpy as np
import oracle
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from b2b_jax.growth import grow, plan_growth
from b2b_jax.growth.mappings import MAPPINGS

EXACT = 1e-5


def measured_gap(source, target, plan, seed=0):
    """How far the grown model is from its source, by the float64 reference forward."""
    params, inputs = tiny.random_params(source, seed), tiny.batch(source, seed)
    big = tiny.grow_jitted(params, plan)
    return tiny.gap(oracle.forward(target, big, **inputs), oracle.forward(source, params, **inputs))


@pytest.mark.parametrize("mapping", ["cyclic", "balanced"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("factor", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_equal_copies_keep_every_output(family, mapping, factor):
    source = tiny.config(family)
    target = tiny.wider(source, factor, neurons=50)
    plan = plan_growth(source, target, method="fpi", mapping=mapping, seed=factor)
    assert plan.is_exact
    params, inputs = tiny.random_params(source), tiny.batch(source)
    before = tiny.outputs(source, params, inputs)
    after = tiny.outputs(target, grow(params, plan), inputs)
    assert tiny.gap(after, before) < EXACT
    if family == "bert":
        wide = before["pooled"][:, plan.maps["embed"].indices]
        np.testing.assert_allclose(after["pooled"], wide, atol=EXACT)
        assert set(before) == {"logits", "pooled", "nsp"}


@settings(max_examples=14)
@given(
    family=st.sampled_from(["bert", "gpt2"]),
    mapping=st.sampled_from(["cyclic", "balanced"]),
    heads=st.integers(1, 4),
    head_dim=st.integers(2, 5),
    factor=st.integers(1, 4),
    neurons=st.tuples(st.integers(3, 12), st.integers(0, 17)),
    layers=st.integers(1, 3),
    hidden_map=st.sampled_from(["cyclic", "balanced", "uniform"]),
    seed=st.integers(0, 99),
)
def test_any_sizes_with_equal_copies_of_the_residual_stream(
    family, mapping, heads, head_dim, factor, neurons, layers, hidden_map, seed
):
    """Heads and neurons may be copied in any numbers; only the residual stream may not."""
    source = tiny.config(
        family,
        hidden_size=max(heads * head_dim, 3) if heads > 1 else 4,
        num_attention_heads=heads,
        intermediate_size=neurons[0],
        num_hidden_layers=layers,
    )
    target = tiny.wider(source, factor, sum(neurons))
    plan = plan_growth(source, target, method="fpi", mapping=mapping, seed=seed)
    rng = np.random.default_rng(seed)
    uneven = {
        name: MAPPINGS[hidden_map](plan.source_sizes[name], plan.target_sizes[name], rng)
        for name in ("heads", "mlp")
    }
    plan = dataclasses.replace(plan, maps=plan.maps | uneven)
    assert plan.is_exact
    assert measured_gap(source, target, plan, seed) < EXACT


@settings(max_examples=10)
@given(
    family=st.sampled_from(["bert", "gpt2"]),
    method=st.sampled_from(["fpi", "fpi", "fpi", "aki", "direct_copy", "random"]),
    mapping=st.sampled_from(["cyclic", "balanced", "uniform"]),
    heads=st.integers(3, 9),
    neurons=st.sampled_from([22, 37]),
    seed=st.integers(0, 9),
)
def test_the_plan_predicts_whether_growth_is_exact(family, method, mapping, heads, neurons, seed):
    source = tiny.config(family)
    target = tiny.uneven(source, heads, neurons)
    plan = plan_growth(source, target, method=method, mapping=mapping, seed=seed)
    exact = measured_gap(source, target, plan, seed) < EXACT
    assert plan.is_exact == exact, plan.why_inexact


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("mapping", ["cyclic", "balanced", "uniform"])
def test_uneven_copies_shift_the_norms_and_the_plan_says_so(family, mapping):
    source = tiny.config(family)
    target = tiny.uneven(source) if mapping != "uniform" else tiny.wider(source)
    plan = plan_growth(source, target, method="fpi", mapping=mapping)
    assert not plan.is_exact
    assert "statistics of every LayerNorm" in " ".join(plan.why_inexact)
    assert 1e-3 < measured_gap(source, target, plan) < 1


def test_heads_and_neurons_alone_may_grow_unevenly():
    source = tiny.config()
    target = source.replace(intermediate_size=31)
    plan = plan_growth(source, target, method="fpi", mapping="uniform")
    assert plan.is_exact
    assert measured_gap(source, target, plan) < EXACT


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("factor", [2, 3])
def test_low_precision_parameters_are_rounded_once(dtype, factor):
    """Arithmetic in float32 on the stored values, one cast at the end."""
    source = tiny.config()
    plan = plan_growth(source, tiny.wider(source, factor), method="fpi")
    params = tiny.random_params(source, dtype=dtype)
    exact = oracle.grown(params, plan)  # float64, of the rounded source
    rounded = tiny.map_leaves(lambda leaf: leaf.astype(np.float32).astype(dtype), exact)
    tiny.assert_trees_equal(grow(params, plan), rounded)
