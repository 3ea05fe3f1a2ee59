"""Models as functions: who sees whom, dropout, precision, memory trades, depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from b2b_jax.models import Compute, build_model
from b2b_jax.tree import flatten


def dropless(family, **changes):
    return tiny.config(family, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **changes)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_who_sees_whom(family):
    """By gradients: position i of the output depends on position j of the input, or not."""
    cfg = tiny.config(family, num_hidden_layers=2)
    model, params = build_model(cfg), tiny.random_params(cfg)
    ids = jnp.asarray(np.random.default_rng(0).integers(61, size=(1, 6)))
    mask = jnp.asarray([[True, True, True, True, True, False]])
    x = model.embed(params, ids)

    def output(x):
        return model.logits(params, model.run_layers(params["layers"], x, mask=mask))[0]

    # [output position, input position]
    influence = np.abs(jax.jacrev(lambda x: output(x)[:, :7])(x)).max((1, 2, 4))
    sees = np.ones((6, 6), bool) if family == "bert" else np.tril(np.ones((6, 6), bool))
    sees[:5, 5] = False  # hidden by the mask; the last position still reads its own residual
    np.testing.assert_array_equal(influence > 0, sees)


def test_segments_positions_and_defaults():
    cfg = tiny.config()
    model, params = build_model(cfg), tiny.random_params(cfg)
    ids = tiny.batch(cfg)["input_ids"]
    plain = model.apply(params, ids)
    assert plain.shape == (3, 9, 61)
    assert plain.dtype == jnp.float32
    explicit = model.apply(params, ids, jnp.ones_like(ids), jnp.zeros_like(ids))
    np.testing.assert_allclose(plain, explicit, atol=1e-5)
    assert jnp.abs(plain - model.apply(params, ids, None, jnp.ones_like(ids))).max() > 1e-2
    same = model.apply(params, jnp.full((1, 4), 5))
    assert jnp.abs(same[0, 0] - same[0, 1]).max() > 1e-2  # positions differ
    with pytest.raises(ValueError, match="max_position_embeddings = 13"):
        model.apply(params, jnp.ones((1, 14), int))


def test_init_is_a_plain_tree_of_float32():
    cfg = tiny.config(num_hidden_layers=2)
    params = build_model(cfg, compute=Compute(dtype="bfloat16")).init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert type(params["layers"]["mlp"]["up"]) is dict
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    assert not np.array_equal(kernel[0], kernel[1])  # layers are drawn apart
    flat = flatten(params)
    model = build_model(cfg)
    assert {path: leaf.shape for path, leaf in flat.items()} == model.shapes
    assert list(model.shapes) == list(model.axes)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_bfloat16_is_close(family):
    cfg = dropless(family)
    params, inputs = tiny.random_params(cfg), tiny.batch(cfg)
    exact = build_model(cfg).apply(params, **inputs)
    half = build_model(cfg, compute=Compute(dtype="bfloat16"))
    close = half.apply(params, **inputs)
    assert close.dtype == jnp.float32
    assert half.hidden(params, **inputs).dtype == jnp.bfloat16
    error = jnp.abs(close - exact).max() / jnp.abs(exact).max()
    assert 1e-5 < error < 5e-2
    assert jnp.corrcoef(close.ravel(), exact.ravel())[0, 1] > 0.999


def loss_gradients(cfg, compute, params, inputs, key=None):
    model = build_model(cfg, compute=compute)

    def loss(params):
        mask = inputs["attention_mask"].astype(bool)
        x = model.embed(params, inputs["input_ids"])
        keys = None if key is None else jax.random.split(key, cfg.num_hidden_layers)
        x = model.run_layers(params["layers"], x, mask=mask, dropout_keys=keys)
        return jnp.sin(model.logits(params, x)).mean()

    return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize(
    ("family", "with_dropout", "compute"),
    [
        ("bert", True, Compute(remat="full")),
        pytest.param("bert", True, Compute(remat="dots", scan_unroll=3), marks=pytest.mark.slow),
        ("gpt2", False, Compute(scan_unroll=2)),
    ],
)
def test_memory_and_unrolling_change_no_gradient(family, with_dropout, compute):
    cfg = tiny.config(family)
    params, inputs = tiny.random_params(cfg), tiny.batch(cfg)
    key = jax.random.key(3) if with_dropout else None
    expected = loss_gradients(cfg, Compute(), params, inputs, key)
    found = loss_gradients(cfg, compute, params, inputs, key)
    for path, leaf in flatten(expected).items():
        if path.startswith(("embeddings", "layers")) and "key/bias" not in path:
            assert jnp.abs(leaf).max() > 0, path
        np.testing.assert_allclose(flatten(found)[path], leaf, rtol=1e-4, atol=1e-7, err_msg=path)


@pytest.mark.parametrize(("family", "split"), [("bert", 1), ("bert", 4), ("gpt2", 3), ("gpt2", 0)])
def test_a_prefix_and_the_rest_are_the_whole(family, split):
    cfg = tiny.config(family)
    model, params = build_model(cfg), tiny.random_params(cfg)
    inputs = tiny.batch(cfg)
    mask = inputs["attention_mask"].astype(bool)
    x = model.embed(params, inputs["input_ids"])
    keys = jax.random.split(jax.random.key(0), 4)
    lower, upper = (
        jax.tree.map(lambda leaf, part=part: leaf[part], params["layers"])
        for part in (slice(split), slice(split, None))
    )

    def run(layers, x, keys):
        return model.run_layers(layers, x, mask=mask, dropout_keys=keys)

    run = jax.jit(run)
    whole = run(params["layers"], x, keys)
    rest = run(upper, run(lower, x, keys[:split]), keys[split:])
    np.testing.assert_allclose(rest, whole, rtol=1e-5, atol=1e-6)


def test_the_program_does_not_grow_with_depth():
    def equations(layers):
        cfg = tiny.config(num_hidden_layers=layers)
        model = build_model(cfg)
        params = jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
            tiny.unflatten(model.shapes),
            is_leaf=lambda node: isinstance(node, tuple),
        )
        loss = jax.grad(lambda p: model.apply(p, jnp.ones((2, 5), int)).sum())
        return str(jax.make_jaxpr(loss)(params)).count(" = ")

    assert 100 < equations(4) == equations(24)


def test_no_key_no_dropout():
    cfg = tiny.config(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    params, inputs = tiny.random_params(cfg), tiny.batch(cfg)
    undropped = build_model(dropless("bert")).apply(params, **inputs)
    np.testing.assert_array_equal(build_model(cfg).apply(params, **inputs), undropped)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("which", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_each_dropout_is_active_and_drawn_from_the_key(family, which):
    cfg = dropless(family).replace(**{which: 0.3})
    model, params = build_model(cfg), tiny.random_params(cfg)
    x = model.embed(params, tiny.batch(cfg)["input_ids"])

    @jax.jit
    def run(seed):
        keys = jax.random.split(jax.random.key(seed), cfg.num_hidden_layers)
        return model.run_layers(params["layers"], x, dropout_keys=keys)

    np.testing.assert_array_equal(run(0), run(0))
    assert jnp.abs(run(0) - run(1)).max() > 1e-2
    assert jnp.abs(run(0) - model.run_layers(params["layers"], x)).max() > 1e-2


def test_dropout_of_embeddings_keeps_the_mean():
    cfg = tiny.config("gpt2", hidden_dropout_prob=0.25)
    model, params = build_model(cfg), tiny.random_params(cfg)
    ids = jnp.tile(tiny.batch(cfg)["input_ids"], (400, 1))
    plain = model.embed(params, ids)
    dropped = model.embed(params, ids, dropout_key=jax.random.key(0))
    kept = dropped != 0
    assert float(kept.mean()) == pytest.approx(0.75, abs=0.01)
    np.testing.assert_allclose(dropped[kept], (plain / 0.75)[kept], rtol=1e-6)


def test_dropout_of_attention_keeps_the_mean():
    """The attention output is linear in the probabilities: its mean is the undropped one."""
    cfg = tiny.config("gpt2", num_hidden_layers=1, hidden_dropout_prob=0.0)
    cfg = cfg.replace(attention_probs_dropout_prob=0.25)
    model, params = build_model(cfg), tiny.random_params(cfg)
    # Without neurons, one block is x + attention(x).
    params["layers"]["mlp"]["down"] = jax.tree.map(jnp.zeros_like, params["layers"]["mlp"]["down"])
    rows = jnp.tile(tiny.batch(cfg)["input_ids"][:1], (3000, 1))
    x = model.embed(params, rows)
    plain = model.run_layers(params["layers"], x[:1])
    dropped = model.run_layers(
        params["layers"], x, dropout_keys=jax.random.split(jax.random.key(0), 1)
    )
    error = dropped.std(0) / np.sqrt(3000)
    assert (jnp.abs(dropped.mean(0) - plain[0]) < 5.5 * error + 1e-6).all()
    # The first token sees itself alone: dropped as a whole, by head, or scaled by 4/3.
    assert float(dropped[:, 0].std()) > 0.01


def test_dropped_attention_is_as_causal_and_masked_as_undropped():
    cfg = tiny.config("gpt2", hidden_dropout_prob=0.0, num_hidden_layers=2)
    model, params = build_model(cfg), tiny.random_params(cfg)
    ids = tiny.batch(cfg)["input_ids"][:1]
    mask = jnp.arange(9)[None] != 2
    keys = jax.random.split(jax.random.key(0), 2)

    def output(x):
        return model.run_layers(params["layers"], x, mask=mask, dropout_keys=keys)[0]

    influence = np.abs(jax.jacrev(output)(model.embed(params, ids))).max((1, 2, 4))
    assert not np.triu(influence, 1).any()
    assert not influence[3:, 2].any()
    assert influence[8, 0] > 0
