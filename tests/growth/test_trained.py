"""The paper's Table 1 in small: the loss of a trained model before and after growth."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from b2b_jax.growth import grow, plan_growth
from b2b_jax.models import ModelConfig, build_model

MASK_ID, ROWS, TOKENS, STEPS = 0, 16, 24, 700
SMALL = ModelConfig(
    vocab_size=60,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=96,
    max_position_embeddings=TOKENS,
    initializer_range=0.1,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def language(key, rows):
    """Sentences in which every token but a few follows from its neighbours."""
    start_key, noise_key, mask_key = jax.random.split(key, 3)
    start = jax.random.randint(start_key, (rows, 1), 0, 59)
    step = jnp.arange(TOKENS)[None] * 7
    tokens = (start + step) % 59 + 1
    noise = jax.random.bernoulli(noise_key, 0.02, tokens.shape)
    other = jax.random.randint(noise_key, tokens.shape, 1, 60)
    tokens = jnp.where(noise, other, tokens)
    return tokens, jax.random.bernoulli(mask_key, 0.2, tokens.shape)


def mlm_loss(cfg, params, key, rows=ROWS):
    tokens, masked = language(key, rows)
    logits = build_model(cfg).apply(params, jnp.where(masked, MASK_ID, tokens))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    return (losses * masked).sum() / masked.sum()


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained():
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    def step(carry, key):
        params, state = carry
        loss, grads = jax.value_and_grad(lambda p: mlm_loss(SMALL, p, key))(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    def train(params, keys):
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return params, losses

    # Here the running takes longer than the compiling that the other tests save on.
    train = jax.jit(train, compiler_options={"xla_backend_optimization_level": "1"})
    params = build_model(SMALL).init(jax.random.key(0))
    params, losses = train(params, jax.random.split(jax.random.key(1), STEPS))
    assert losses[-20:].mean() < 0.6 * losses[:20].mean(), "the source did not learn"
    return params


def loss_of(cfg, params):
    return float(jax.jit(lambda p: mlm_loss(cfg, p, jax.random.key(2), rows=64))(params))


def widened(heads):
    return SMALL.replace(
        hidden_size=16 * heads, num_attention_heads=heads, intermediate_size=32 * heads
    )


@pytest.fixture(scope="module")
def table(trained):
    """Loss by width in heads and by method; 0 heads is the source."""
    found = {(0, "source"): loss_of(SMALL, trained)}
    for heads, methods in ((6, ("fpi", "direct_copy", "random")), (5, ("fpi", "aki"))):
        cfg = widened(heads)
        evaluate = jax.jit(lambda p, cfg=cfg: mlm_loss(cfg, p, jax.random.key(2), rows=64))
        for method in methods:
            plan = plan_growth(SMALL, cfg, method=method)
            found[heads, method] = float(evaluate(grow(trained, plan)))
    return found


def test_the_loss_at_twice_the_width_stays(table):
    assert table[6, "fpi"] == pytest.approx(table[0, "source"], abs=1e-4)


def test_the_order_of_table_1(table):
    assert table[6, "random"] > np.log(60) - 0.1
    assert table[6, "random"] > table[6, "direct_copy"] + 0.5
    assert table[6, "direct_copy"] > table[6, "fpi"] + 0.5


def test_the_gap_at_uneven_width_is_there_and_small(table):
    gap = table[5, "fpi"] - table[0, "source"]
    assert 1e-4 < abs(gap) < 0.25 * (table[6, "direct_copy"] - table[0, "source"])


def test_aki_starts_higher_than_fpi(table):
    assert table[5, "aki"] > table[5, "fpi"] + 0.05
