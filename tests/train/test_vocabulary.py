"""The loss in blocks is the loss of all logits, value and gradients, on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from b2b_jax.models import Decoder
from b2b_jax.train.losses import cross_entropy
from b2b_jax.train.vocabulary import VocabularyLoss

B, M, D, V = 3, 5, 8, 37


def case(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 5)
    hidden = jax.random.normal(keys[0], (B, M, D)).astype(dtype)
    decoder = Decoder(jax.random.normal(keys[1], (V, D)), jax.random.normal(keys[2], (V,)))
    labels = jax.random.randint(keys[3], (B, M), 0, V)
    weights = jax.random.uniform(keys[4], (B, M)).at[0, 1].set(0.0)
    return hidden, decoder, labels, weights


def gradients(loss, hidden, decoder, labels, weights):
    def total(hidden, decoder):
        return 3.0 * loss(hidden, decoder, labels=labels, weights=weights).total

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(hidden, decoder)


def assert_close(found, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def plain(hidden, decoder, *, labels, weights):
    return cross_entropy(decoder.logits(hidden), labels, weights=weights)


@pytest.mark.parametrize("rows", [1, 4, 7, 14])
def test_blocks_of_any_size_give_value_and_gradients_of_the_whole(rows):
    blocks = VocabularyLoss(logits_bytes=4 * V * rows)
    found, expected = gradients(blocks, *case()), gradients(plain, *case())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), found, expected
    )
    hidden, decoder, labels, weights = case()
    alone = blocks(hidden, decoder, labels=labels, weights=weights)
    np.testing.assert_allclose(
        alone.total, plain(hidden, decoder, labels=labels, weights=weights).total, rtol=1e-5
    )
    np.testing.assert_allclose(alone.count, weights.sum())


def test_blocks_in_bfloat16_are_as_close_as_bfloat16_is():
    blocks = VocabularyLoss(logits_bytes=4 * V * 4)
    found, expected = gradients(blocks, *case(jnp.bfloat16)), gradients(plain, *case())
    assert found[1][0].dtype == jnp.bfloat16 and found[1][1].table.dtype == jnp.float32
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-2)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        error = np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b)
        assert error < 2e-2


def test_without_a_bias_and_with_extreme_logits():
    hidden, decoder, labels, weights = case()
    bare = Decoder(decoder.table, None)
    blocks = VocabularyLoss(logits_bytes=4 * V * 4)
    found = gradients(blocks, 100 * hidden, bare, labels, weights)
    expected = gradients(plain, 100 * hidden, bare, labels, weights)
    assert found[1][1].bias is None and np.isfinite(found[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), found, expected
    )


def test_all_logits_are_never_there_at_once():
    hidden = jax.ShapeDtypeStruct((4, 256, 16), jnp.bfloat16)
    decoder = Decoder(jax.ShapeDtypeStruct((4096, 16), jnp.float32), None)
    labels = jax.ShapeDtypeStruct((4, 256), jnp.int32)
    weights = jax.ShapeDtypeStruct((4, 256), jnp.float32)

    def temporaries(logits_bytes: int) -> int:
        loss = VocabularyLoss(logits_bytes=logits_bytes)

        def total(hidden, decoder, labels, weights):
            return loss(hidden, decoder, labels=labels, weights=weights).total

        step = jax.jit(jax.grad(total, argnums=(0, 1)))
        compiled = step.lower(hidden, decoder, labels, weights).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = 4 * 4 * 256 * 4096
    assert temporaries(whole // 16) < whole / 2 < whole <= temporaries(whole)
