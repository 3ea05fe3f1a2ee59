"""Losses are divided once; micro-batches and devices change nothing; learning happens."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_support import OPTIMIZER, TOKENIZER, VOCAB, Setup, config, tokens

from b2b_jax.models import Compute
from b2b_jax.train.losses import LossSum, cross_entropy
from b2b_jax.train.objective import Objective
from b2b_jax.train.optim import OptimizerConfig, learning_rate, make_optimizer
from b2b_jax.train.stages import TwoStageConfig, full_model, sub_models
from b2b_jax.train.step import make_eval_step
from b2b_jax.tree import flatten, unflatten


def test_cross_entropy_against_numpy():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 4, 7)), rng.integers(7, size=(3, 4))
    weights = rng.integers(2, size=(3, 4)).astype(np.float32)
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = shifted / shifted.sum(-1, keepdims=True)
    total = sum(
        -np.log(probabilities[i, j, labels[i, j]]) * weights[i, j]
        for i in range(3)
        for j in range(4)
    )
    loss = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), weights=jnp.asarray(weights))
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)
    assert loss.count == weights.sum()


def test_sums_add_so_that_the_mean_is_not_a_mean_of_means():
    whole = LossSum(jnp.float32(10.0), jnp.float32(5.0)) + LossSum(jnp.float32(1.0), jnp.float32(1))
    assert float(whole.mean) == pytest.approx(11 / 6)


@pytest.mark.parametrize("family", ["bert", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_micro_batches_give_the_gradient_of_the_whole_batch(family):
    """Some sequences have fewer maskable tokens, so parts weigh unequally."""
    ids = np.array(tokens())
    ids[::3, 2:] = TOKENIZER.pad_id  # leaves at most two tokens to mask
    results = []
    for parts in (1, 4):
        setup = Setup(config(family), micro_batches=parts)
        state, metrics = setup.step(full_model(4))(setup.state(), jnp.asarray(ids))
        results.append((state.params, metrics))
    for params, metrics in results[1:]:
        np.testing.assert_allclose(metrics.loss.mean, results[0][1].loss.mean, rtol=1e-5)
        np.testing.assert_allclose(metrics.grad_norm, results[0][1].grad_norm, rtol=1e-4)
        for path, leaf in flatten(params).items():
            np.testing.assert_allclose(leaf, flatten(results[0][0])[path], atol=1e-4, err_msg=path)


def test_masks_come_from_seed_and_step():
    setup = Setup(config())
    first = setup.objective.example(tokens(), jax.random.key(0))
    again = setup.objective.example(tokens(), jax.random.key(0))
    other = setup.objective.example(tokens(), jax.random.key(1))
    np.testing.assert_array_equal(first.positions, again.positions)
    assert (np.asarray(first.positions) != np.asarray(other.positions)).any()


def test_causal_objective_predicts_the_next_token_and_not_past_the_end():
    example = Objective("clm", TOKENIZER).example(tokens(), jax.random.key(0))
    np.testing.assert_array_equal(example.labels[:, :-1], tokens()[:, 1:])
    np.testing.assert_array_equal(example.weights[:, -1], 0)
    assert float(example.weights.sum()) == 8 * 11


@pytest.mark.parametrize("family", [pytest.param("bert", marks=pytest.mark.slow), "gpt2"])
def test_training_learns_a_language(family):
    setup = Setup(config(family), optimizer=OptimizerConfig(1e-2, warmup_steps=5))
    state, step, losses = setup.state(), setup.step(full_model(4)), []
    for index in range(60):
        ids = np.repeat(np.random.default_rng(index).integers(5, 35, (16, 1)), 12, axis=1)
        state, metrics = step(state, jnp.asarray(ids, jnp.int32))
        losses.append(float(metrics.loss.mean))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5]) < np.log(VOCAB)


@pytest.mark.slow
def test_adam_equals_optax_where_everything_is_always_live():
    setup = Setup(config())
    state = setup.state()
    decay = {path: axes.role in ("kernel", "embedding") for path, axes in setup.model.axes.items()}
    flat = flatten(state.params)
    plain = optax.chain(
        optax.clip_by_global_norm(OPTIMIZER.clip_norm),
        optax.adamw(
            lambda step: learning_rate(step, OPTIMIZER, total_steps=100),
            b1=OPTIMIZER.adam_b1,
            b2=OPTIMIZER.adam_b2,
            eps=OPTIMIZER.adam_eps,
            weight_decay=OPTIMIZER.weight_decay,
            mask=decay,
        ),
    )
    ours, theirs = setup.optimizer, plain
    our_state, their_state = ours.init(state.params), theirs.init(flat)
    our_params, their_params = state.params, flat
    for seed in range(4):
        rng = np.random.default_rng(seed)
        grads = {p: jnp.asarray(rng.normal(size=x.shape), jnp.float32) for p, x in flat.items()}
        updates, our_state = ours.update(unflatten(grads), our_state, our_params)
        our_params = optax.apply_updates(our_params, updates)
        updates, their_state = theirs.update(grads, their_state, their_params)
        their_params = optax.apply_updates(their_params, updates)
    for path, leaf in flatten(our_params).items():
        np.testing.assert_allclose(leaf, their_params[path], atol=1e-6, err_msg=path)


def test_decay_goes_by_name_not_by_dimensions():
    """Stacked biases and norms have two dimensions and more, and are still not decayed."""
    setup = Setup(config())
    state = setup.state()
    optimizer = make_optimizer(
        OptimizerConfig(1.0, warmup_steps=0, weight_decay=1.0), setup.model.axes, total_steps=10
    )

    @jax.jit
    def update(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optimizer.update(zeros, optimizer.init(params), params)[0]

    updates = update(state.params)
    for path, update in flatten(updates).items():
        decays = path.endswith(("kernel", "embedding"))
        assert bool(jnp.any(update != 0)) == decays, path


def test_learning_rate_is_one_schedule_with_one_warm_up():
    config_ = OptimizerConfig(peak_learning_rate=2.0, warmup_steps=4)
    rates = [float(learning_rate(jnp.int32(s), config_, total_steps=12)) for s in range(13)]
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0])
    np.testing.assert_allclose(np.diff(rates[4:]), -0.25, atol=1e-6)
    assert rates[12] == 0


@pytest.mark.parametrize(
    "compute",
    [Compute(remat="full"), pytest.param(Compute(scan_unroll=4), marks=pytest.mark.slow)],
)
def test_memory_and_speed_knobs_do_not_change_the_step(compute):
    plain, other = Setup(config()), Setup(config(), compute=compute)
    expected, _ = plain.step(full_model(4))(plain.state(), tokens())
    found, _ = other.step(full_model(4))(other.state(), tokens())
    for path, leaf in flatten(found.params).items():
        np.testing.assert_allclose(leaf, flatten(expected.params)[path], atol=1e-5, err_msg=path)


def test_bfloat16_keeps_parameters_and_moments_in_float32():
    setup = Setup(config(), compute=Compute(dtype="bfloat16"))
    state, metrics = setup.step(full_model(4))(setup.state(), tokens())
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt_state[1].mu)} == {jnp.dtype("float32")}
    plain = Setup(config())
    _, exact = plain.step(full_model(4))(plain.state(), tokens())
    np.testing.assert_allclose(metrics.loss.mean, exact.loss.mean, rtol=2e-2)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_evaluation_in_parts_is_that_of_the_whole_batch(family):
    setup = Setup(config(family))
    params, found = setup.state().params, []
    for parts in (1, 2):
        evaluate = make_eval_step(
            setup.model, objective=setup.objective, depths=(2, 4), micro_batches=parts
        )
        found.append(evaluate(params, tokens(), jnp.int32(3)))
    np.testing.assert_allclose(found[1].total, found[0].total, rtol=1e-5)
    np.testing.assert_array_equal(found[1].count, found[0].count)


def test_evaluation_of_prefixes_is_that_of_separate_sub_models():
    setup = Setup(config())
    state = setup.state()
    evaluate = make_eval_step(setup.model, objective=setup.objective, depths=(1, 3, 4))
    together = evaluate(state.params, tokens(), jnp.int32(0))
    for index, depth in enumerate((1, 3, 4)):
        one = make_eval_step(setup.model, objective=setup.objective, depths=(depth,))
        alone = one(state.params, tokens(), jnp.int32(0))
        np.testing.assert_allclose(together.total[index], alone.total[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_compiled_flops_of_every_sub_model_match_the_count(family):
    from b2b_jax.report.flops import step_cost

    cfg = config(
        family,
        hidden_size=192,
        num_attention_heads=6,
        intermediate_size=768,
        vocab_size=1000,
        max_position_embeddings=64,
    )
    # The scan's body is counted once by XLA, so it is unrolled here.
    setup = Setup(cfg, compute=Compute(scan_unroll=cfg.num_hidden_layers))
    state = jax.eval_shape(lambda: setup.state())
    ids = jax.ShapeDtypeStruct((16, 64), jnp.int32)
    policies = [
        TwoStageConfig(steps=1, layers_per_block=1, tied_table=t) for t in ("embeddings", "head")
    ]
    subs = [*sub_models(4, policies[0]), sub_models(4, policies[1])[2], full_model(4)]
    ratios = {}
    for sub in subs:
        counted = setup.step(sub).lower(state, ids).compile().cost_analysis()["flops"]
        expected = step_cost(cfg, sub, batch_size=16, sequence_length=64, predictions=3).exact
        ratios[sub] = counted / expected
    assert all(0.95 < ratio < 1.05 for ratio in ratios.values()), ratios
