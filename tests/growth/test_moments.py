"""Optimizer state through the plan: grown moments are those that the grown model would have had."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from b2b_jax.growth import (
    GrowthError,
    grow,
    grow_gradient,
    grow_optimizer_state,
    plan_growth,
)
from b2b_jax.models import build_model
from b2b_jax.train.optim import OptimizerConfig, make_optimizer
from b2b_jax.tree import flatten, map_with_path


def gradient(cfg, params):
    inputs = tiny.batch(cfg)

    def loss(p):
        model = build_model(cfg)
        hidden = model.hidden(p, **inputs)
        total = (jnp.sin(jnp.arange(cfg.vocab_size)) * model.logits(p, hidden)).mean()
        if "nsp" in cfg.heads:
            total += model.next_sentence_logits(p, hidden)[:, 0].sum()
        return total

    return jax.jit(jax.grad(loss))(params)


def widened(family):
    source = tiny.config(family)
    target = tiny.wider(source, 2, neurons=2 * source.intermediate_size + 3)
    return source, target


def relative(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_gradient_of_the_grown_model_is_the_grown_gradient(family):
    source, target = widened(family)
    plan = plan_growth(source, target, method="fpi")
    assert plan.is_exact
    params = tiny.random_params(source)
    grads = gradient(source, params)
    found = flatten(gradient(target, grow(params, plan)))
    for path, expected in flatten(grow_gradient(grads, plan)).items():
        if path.endswith("key/bias"):
            # Softmax does not see a shift of all scores: rounding is all there is.
            assert np.abs(found[path]).max() < 1e-5
            continue
        assert relative(found[path], expected) < 1e-6, path


@pytest.mark.slow
def test_norms_of_padded_models_have_gradients_of_the_other_scale():
    source = tiny.config("gpt2")
    target = tiny.uneven(source).replace(layer_norm_eps=6e-6)
    plan = plan_growth(source, target, method="fpi", norm="mean_pad")
    params = tiny.random_params(source)
    found = flatten(gradient(target, grow(params, plan)))
    expected = flatten(grow_gradient(gradient(source, params), plan))
    copies = plan.maps["embed"].is_copy
    for path in ("layers/mlp_norm/scale", "final_norm/scale"):
        assert relative(found[path][..., copies], expected[path][..., copies]) < 1e-5
        assert not np.asarray(expected[path])[..., ~copies].any()


def test_a_parameter_of_size_one_grows():
    table = {"up": "kernel: | width -> mlp", "bias": "bias: | -> mlp", "out": "kernel: | mlp -> y"}
    sizes = {"width": 2, "mlp": (1, 3), "y": 2}
    plan = plan_growth(axes=table, sizes=sizes, method="fpi")
    params = {"up": jnp.ones((2, 1)), "bias": jnp.ones(1), "out": jnp.ones((1, 2))}
    grown = grow_optimizer_state(optax.adam(1e-3).init(params), plan)
    assert grown[0].mu["bias"].shape == (3,)


@pytest.mark.slow
def test_moments_of_fresh_parameters():
    """First moments of zero; second ones of usual size, as Adam's count goes on."""
    source = tiny.config()
    target = source.replace(vocab_size=70, intermediate_size=44)
    params = tiny.random_params(source)
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=2)
    state = factored.update(params, factored.init(params), params)[1]
    fpi = grow_optimizer_state(state, plan_growth(source, target, method="fpi"))
    for field in ("v_row", "v_col"):
        small = np.asarray(getattr(state, field)["embeddings"]["token"]["embedding"])
        large = np.asarray(getattr(fpi, field)["embeddings"]["token"]["embedding"])
        if large.shape == (70,):  # one number for every token, new ones last
            np.testing.assert_allclose(large[61:], small.mean(), rtol=1e-5)
    for method in ("random", "direct_copy", "aki"):
        plan = plan_growth(source, target, method=method)
        state = optax.scale_by_adam().init(params)
        moments = tiny.map_leaves(lambda leaf: leaf**2, params)
        state = state._replace(mu=params, nu=moments)
        grown = grow_optimizer_state(state, plan)
        mean = float(moments["layers"]["mlp"]["up"]["bias"].mean())
        new = np.asarray(grown.nu["layers"]["mlp"]["up"]["bias"])[:3, 22:]
        np.testing.assert_allclose(new, mean, rtol=1e-5)
        assert not np.asarray(grown.mu["layers"]["mlp"]["up"]["bias"])[:3, 22:].any()


OPTIMIZERS = {
    "adamw": optax.adamw(1e-2),
    "amsgrad": optax.amsgrad(1e-2),
    "lion": optax.lion(1e-2),
    "momentum": optax.sgd(1e-2, momentum=0.9),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_are_those_that_the_grown_gradients_give(name):
    """Two updates and then growth equal growth and then two updates with grown gradients."""
    source, target = widened("gpt2")
    plan, optimizer = plan_growth(source, target, method="fpi"), OPTIMIZERS[name]
    params = tiny.random_params(source)
    small, large = optimizer.init(params), optimizer.init(grow(params, plan))
    clip = 0.0 if name == "clipped" else 1.0  # clipping sees another global norm
    for seed in (1, 2):
        grads = tiny.map_leaves(lambda leaf, s=seed: clip * jnp.sin(leaf * s * 50), params)
        small = optimizer.update(grads, small, params)[1]
        large = optimizer.update(grow_gradient(grads, plan), large, grow(params, plan))[1]
    grown = grow_optimizer_state(small, plan)
    assert jax.tree.structure(grown) == jax.tree.structure(large)
    for found, expected in zip(jax.tree.leaves(grown), jax.tree.leaves(large), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-12)


def test_the_package_s_own_optimizer_keeps_its_counts_per_layer():
    source = tiny.config("gpt2")
    target = source.replace(num_hidden_layers=source.num_hidden_layers + 2)
    plan = plan_growth(source, target, method="fpi")
    config = OptimizerConfig(1e-3, warmup_steps=1)
    params = tiny.random_params(source)
    state = make_optimizer(config, source.axis_table(), total_steps=9).init(params)
    counts = map_with_path(
        lambda path, n: n + jnp.arange(n.shape[0]).reshape(n.shape) if path[:6] == "layers" else n,
        state[1].count,
    )
    state = (state[0], state[1]._replace(count=counts), *state[2:])
    grown = grow_optimizer_state(state, plan)
    expected = make_optimizer(config, target.axis_table(), total_steps=9).init(grow(params, plan))
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (grown, expected)]
    assert shapes[0] == shapes[1]
    found = np.ravel(grown[1].count["layers"]["mlp"]["up"]["kernel"])
    np.testing.assert_array_equal(found, plan.maps["layers"].indices)


def test_entries_from_the_layer_above_start_from_zero():
    source, target = widened("bert")
    plan = plan_growth(source, target, method="aki")
    ones = tiny.map_leaves(jnp.ones_like, tiny.random_params(source))
    up = np.asarray(flatten(grow_gradient(ones, plan))["layers/mlp/up/kernel"])
    neurons, top = source.intermediate_size, source.num_hidden_layers - 1
    assert (up[:top, :, neurons:] == 0).all() and (up[:top, :, :neurons] > 0).all()
    assert (up[top] > 0).all()


@pytest.mark.slow
def test_factored_moments_of_adafactor():
    """Exact where copies are even: rows and columns average squares of equal shares."""
    source = tiny.config("gpt2", hidden_size=16, num_attention_heads=4, intermediate_size=24)
    target = tiny.wider(source, 2, neurons=48)
    plan = plan_growth(source, target, method="fpi")
    optimizer = optax.scale_by_factored_rms(min_dim_size_to_factor=16)
    params = tiny.random_params(source)
    grads = tiny.map_leaves(lambda leaf: jnp.sin(leaf * 50), params)
    small = optimizer.update(grads, optimizer.init(params), params)[1]
    big = grow(params, plan)
    large = optimizer.update(grow_gradient(grads, plan), optimizer.init(big), big)[1]
    grown = grow_optimizer_state(small, plan)
    for found, expected in zip(jax.tree.leaves(grown), jax.tree.leaves(large), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_an_unknown_moment_is_named():
    source, target = widened("bert")
    plan = plan_growth(source, target, method="fpi")
    with pytest.raises(GrowthError, match=r"skewness/embeddings/norm/bias: not known"):
        grow_optimizer_state({"skewness": tiny.random_params(source)}, plan)
