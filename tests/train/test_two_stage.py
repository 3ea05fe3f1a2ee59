"""Frozen parts stay bit-identical, and the efficient step equals a masked-gradient reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_support import OPTIMIZER, Setup, config, shared_setup, tokens

from b2b_jax.train.live import is_stacked
from b2b_jax.train.optim import learning_rate
from b2b_jax.train.stages import SubModel, TwoStageConfig, full_model, sub_models
from b2b_jax.tree import flatten

POLICIES = [
    ("first", "embeddings"),
    ("first", "head"),
    ("never", "embeddings"),
    ("never", "head"),
    ("always", "embeddings"),
]
TABLE = "embeddings/token/embedding"


def live_mask(path: str, leaf, sub: SubModel, stacked: bool) -> np.ndarray:
    """True where Algorithm 2 trains, written down anew."""
    mask = np.zeros(leaf.shape, bool)
    if stacked:
        mask[sub.first_live : sub.depth] = True
    elif path.startswith("embeddings"):
        head_side = path == TABLE and sub.output_table == "trained"
        mask[...] = sub.embeddings == "trained" or head_side
    else:
        mask[...] = True
    return mask


def warmed_up(setup: Setup):
    """A state whose moments are non-zero everywhere."""
    state = setup.state()
    full = setup.step(full_model(setup.cfg.num_hidden_layers))
    for index in range(2):
        state, _ = full(state, tokens(index))
    return state


CASES = [
    ("bert", *POLICIES[1]),
    *(
        pytest.param("bert", *policy, marks=pytest.mark.slow)
        for policy in (POLICIES[0], *POLICIES[2:])
    ),
    pytest.param("gpt2", *POLICIES[0], marks=pytest.mark.slow),
    ("gpt2", *POLICIES[3]),
]


@pytest.mark.parametrize(("family", "embeddings", "tied_table"), CASES)
def test_frozen_parameters_and_moments_are_bit_identical(family, embeddings, tied_table):
    setup = shared_setup(family)
    two_stage = TwoStageConfig(
        steps=1, layers_per_block=2, embeddings=embeddings, tied_table=tied_table
    )
    state = warmed_up(setup)
    for sub in sub_models(4, two_stage):
        after, _ = setup.step(sub)(state, tokens(9))
        adam_before, adam_after = state.opt_state[1], after.opt_state[1]
        for before, now in (
            (state.params, after.params),
            (adam_before.mu, adam_after.mu),
            (adam_before.nu, adam_after.nu),
        ):
            now = flatten(now)
            for path, leaf in flatten(before).items():
                mask = live_mask(path, leaf, sub, is_stacked(setup.model.axes[path]))
                same = np.asarray(leaf) == np.asarray(now[path])
                assert same[~mask].all(), f"{path} moved where it is frozen"
                # An embedding row that no token uses has no gradient, but it decays.
                assert not mask.any() or not same[mask].all(), f"{path} did not move"
        counts = flatten(adam_after.count)
        for path, count in flatten(adam_before.count).items():
            mask = live_mask(path, count, sub, is_stacked(setup.model.axes[path]))
            np.testing.assert_array_equal(np.asarray(counts[path] - count), mask.astype(int))


def reference_loss(params, state, *, setup: Setup, sub: SubModel, ids):
    """The sub-model's loss with nothing cut away but stop_gradient where parts are frozen."""
    model = setup.model
    key = jax.random.split(jax.random.fold_in(jax.random.key(3), state.step))[0]
    example = setup.objective.example(ids, key)
    stop = jax.lax.stop_gradient
    lookup = params if sub.embeddings == "trained" else stop(params)
    x = model.embed(lookup, example.input_ids)
    for layer in range(sub.depth):  # one by one, unlike the scan of the step
        weights = jax.tree.map(lambda leaf, i=layer: leaf[i : i + 1], params["layers"])
        x = model.run_layers(weights if layer >= sub.first_live else stop(weights), x)
    table = params["embeddings"]["token"]["embedding"]
    table = table if sub.output_table == "trained" else stop(table)
    head = {**params, "embeddings": {"token": {"embedding": table}}}
    logits = model.logits(head, x)
    if example.positions is not None:
        logits = jnp.take_along_axis(logits, example.positions[..., None], axis=1)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), example.labels[..., None], -1)[..., 0]
    return (losses * example.weights).sum() / example.weights.sum()


def reference_step(state, setup: Setup, sub: SubModel, ids):
    """AdamW in numpy over all parameters, written back only where the mask is true."""
    gradient = jax.jit(jax.grad(functools.partial(reference_loss, setup=setup, sub=sub)))
    grads = flatten(gradient(state.params, state, ids=ids))
    adam = state.opt_state[1]
    params, mu, nu, count = map(flatten, (state.params, adam.mu, adam.nu, adam.count))
    norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in grads.values()))
    lr = float(learning_rate(state.step, OPTIMIZER, total_steps=100))
    result = {}
    for path, value in params.items():
        role = setup.model.axes[path].role
        p, m, v = (np.asarray(x[path], np.float64) for x in (params, mu, nu))
        g = np.asarray(grads[path], np.float64) * min(1.0, OPTIMIZER.clip_norm / norm)
        n = np.asarray(count[path]) + 1
        m = OPTIMIZER.adam_b1 * m + (1 - OPTIMIZER.adam_b1) * g
        v = OPTIMIZER.adam_b2 * v + (1 - OPTIMIZER.adam_b2) * g**2
        update = (m / (1 - OPTIMIZER.adam_b1**n)) / (
            np.sqrt(v / (1 - OPTIMIZER.adam_b2**n)) + OPTIMIZER.adam_eps
        )
        if role in ("kernel", "embedding"):
            update = update + OPTIMIZER.weight_decay * p
        mask = live_mask(path, value, sub, is_stacked(setup.model.axes[path]))
        result[path] = np.where(mask, p - lr * update, p), np.where(mask, m, mu[path])
    return result, norm


@pytest.mark.parametrize(
    ("family", "embeddings", "tied_table"),
    [*CASES[:-1], pytest.param(*CASES[-1], marks=pytest.mark.slow)],
)
def test_efficient_step_equals_masked_gradient_reference(family, embeddings, tied_table):
    setup = shared_setup(family)
    two_stage = TwoStageConfig(
        steps=1, layers_per_block=2, embeddings=embeddings, tied_table=tied_table
    )
    state = warmed_up(setup)
    # One after the other, so that layers have seen different numbers of updates.
    for index, sub in enumerate(sub_models(4, two_stage)):
        ids = tokens(20 + index)
        expected, norm = reference_step(state, setup, sub, ids)
        state, metrics = setup.step(sub)(state, ids)
        np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-4)
        moments = flatten(state.opt_state[1].mu)
        for path, leaf in flatten(state.params).items():
            np.testing.assert_allclose(leaf, expected[path][0], rtol=0, atol=2e-5, err_msg=path)
            np.testing.assert_allclose(moments[path], expected[path][1], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_dropout_of_a_prefix_is_that_of_the_whole_model():
    """Layers draw their dropout by their own number, so freezing does not change what is run."""
    setup = Setup(config(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1))
    state = setup.state()
    frozen_below = SubModel(4, 2, "frozen", "trained")
    _, partly = setup.step(frozen_below)(state, tokens())
    _, whole = setup.step(full_model(4))(state, tokens())
    np.testing.assert_allclose(partly.loss.total, whole.loss.total, rtol=1e-6)


def test_pooler_without_an_objective_is_left_alone():
    setup = Setup(config(heads=("mlm", "pooler", "nsp")))
    state = setup.state()
    after, _ = setup.step(full_model(4))(state, tokens())
    for name in ("pooler", "nsp"):
        before = flatten(state.params[name])
        for path, leaf in flatten(after.params[name]).items():
            np.testing.assert_array_equal(leaf, before[path])
