"""Growth against Eq. 5 to 16 and Algorithm 1, as slow loops compute them."""

import jax
import numpy as np
import oracle
import pytest
import tiny

from b2b_jax.growth import grow, plan_growth
from b2b_jax.tree import flatten

TOLERANCE = {"rtol": 2e-6, "atol": 1e-7}  # float32


@pytest.mark.parametrize("mapping", ["cyclic", "balanced", "uniform"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_fpi_and_algorithm_1(family, mapping):
    """Eq. 5 to 13 for every leaf of a model, at uneven width, then the depth."""
    source = tiny.config(family)
    target = tiny.uneven(source, num_hidden_layers=11)
    plan = plan_growth(source, target, method="fpi", mapping=mapping, seed=3)
    assert len(set(plan.maps["embed"].counts.tolist())) > 1
    params = tiny.random_params(source)
    tiny.assert_trees_close(grow(params, plan), oracle.grown(params, plan), **TOLERANCE)


@pytest.mark.parametrize("scope", ["all", "hidden"])
@pytest.mark.parametrize("mapping", ["cyclic", "balanced", "uniform"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_aki_and_algorithm_1(family, mapping, scope):
    """Eq. 15 and 16: kernels and biases take new entries from the source's own upper layer."""
    source = tiny.config(family)
    target = tiny.uneven(source, num_hidden_layers=11)
    plan = plan_growth(source, target, method="aki", mapping=mapping, aki_scope=scope, seed=3)
    params = tiny.random_params(source)
    tiny.assert_trees_close(grow(params, plan), oracle.grown(params, plan), **TOLERANCE)


@pytest.mark.parametrize("scope", ["all", "hidden"])
def test_aki_differs_from_fpi_only_where_the_equation_says(scope):
    source = tiny.config()
    target = tiny.uneven(source)
    params = tiny.random_params(source)
    fpi = flatten(grow(params, plan_growth(source, target, method="fpi")))
    aki = flatten(grow(params, plan_growth(source, target, method="aki", aki_scope=scope)))
    residual_biases = {"layers/attention/out/bias", "layers/mlp/down/bias"}
    for path, leaf in aki.items():
        expected = np.asarray(fpi[path])
        changes = path.startswith("layers/") and "norm" not in path
        changes = changes and not (scope == "hidden" and path in residual_biases)
        if not changes:
            np.testing.assert_array_equal(leaf, expected, err_msg=path)
            continue
        assert not np.array_equal(leaf, expected), path
        np.testing.assert_array_equal(leaf[-1], expected[-1], err_msg=path)  # no upper layer


def test_a_model_of_one_layer_has_no_donors():
    source = tiny.config(num_hidden_layers=1)
    target = tiny.uneven(source)
    params = tiny.random_params(source)
    tiny.assert_trees_equal(
        grow(params, plan_growth(source, target, method="aki")),
        grow(params, plan_growth(source, target, method="fpi")),
    )


def test_nothing_broadcasts_or_changes_type_by_accident():
    source = tiny.config()
    plan = plan_growth(source, tiny.uneven(source, num_hidden_layers=6), method="aki")
    params = tiny.random_params(source)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        grown = jax.eval_shape(lambda tree: grow(tree, plan), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grown)} == {np.dtype("float32")}


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_reference_computes_what_the_package_computes(family):
    """The forward pass that other tests measure with; its independence is its point."""
    for activation in ("gelu", "gelu_new", "relu"):
        cfg = tiny.config(family, hidden_act=activation)
        params, inputs = tiny.random_params(cfg), tiny.batch(cfg)
        found = tiny.outputs(cfg, params, inputs)
        expected = oracle.forward(cfg, params, **inputs)
        assert found.keys() == expected.keys()
        assert tiny.gap(found, expected) < 1e-5
        if family == "bert":
            np.testing.assert_allclose(found["pooled"], expected["pooled"], atol=1e-5)
