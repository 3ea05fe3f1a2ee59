"""Masking: which tokens are hidden, how, and that nothing but the key decides it."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from b2b_jax.data import DataError, MaskedBatch, TokenizerInfo, mask_tokens

INFO = TokenizerInfo(
    vocab_size=50, pad_id=0, mask_id=4, cls_id=2, sep_id=3, special_ids=(0, 1, 2, 3, 4, 30)
)
B, T, M = 256, 64, 10


def example(rows: int = B) -> np.ndarray:
    ids = np.random.default_rng(0).integers(5, 50, (rows, T), dtype=np.int32)
    ids[ids == 30] = 31
    ids[:, 0], ids[:, -1] = INFO.cls_id, INFO.sep_id
    ids[: rows // 2, 40] = INFO.sep_id
    ids[: rows // 4, 50:] = INFO.pad_id
    return ids


def mask(ids: np.ndarray, *, key: int = 0, count: int = M) -> SimpleNamespace:
    return on_host(
        mask_tokens(jax.random.key(key), jnp.asarray(ids), num_masked=count, tokenizer=INFO)
    )


def on_host(found: MaskedBatch) -> SimpleNamespace:
    return SimpleNamespace(**{name: np.asarray(array) for name, array in vars(found).items()})


def within(found: int, total: int, share: float) -> bool:
    """Within five standard deviations of a binomial distribution."""
    return abs(found - total * share) < 5 * np.sqrt(total * share * (1 - share))


def test_every_sequence_has_exactly_m_distinct_ascending_positions():
    found = mask(example())
    assert found.positions.shape == found.labels.shape == found.weights.shape == (B, M)
    assert found.positions.dtype == np.int32
    assert (np.diff(found.positions, axis=1) > 0).all()
    np.testing.assert_array_equal(found.weights, np.ones((B, M), np.float32))


def test_special_tokens_are_neither_chosen_nor_put_in():
    ids = example()
    found = mask(ids)
    assert not np.isin(found.labels, INFO.special_ids).any()
    seen = np.take_along_axis(found.input_ids, found.positions, axis=1)
    assert not np.isin(seen[seen != INFO.mask_id], INFO.special_ids).any()


def test_labels_are_the_tokens_that_were_there_and_the_rest_is_untouched():
    ids = example()
    found = mask(ids)
    np.testing.assert_array_equal(found.labels, np.take_along_axis(ids, found.positions, axis=1))
    chosen = np.zeros(ids.shape, bool)
    np.put_along_axis(chosen, found.positions, True, axis=1)
    np.testing.assert_array_equal(found.input_ids[~chosen], ids[~chosen])


def test_eighty_percent_are_hidden_ten_replaced_and_ten_kept():
    found = mask(example(2048))
    seen = np.take_along_axis(found.input_ids, found.positions, axis=1)
    total, ordinary = seen.size, INFO.vocab_size - len(INFO.special_ids)
    assert within((seen == INFO.mask_id).sum(), total, 0.8)
    # One random replacement in 44 is the token itself.
    assert within((seen == found.labels).sum(), total, 0.1 + 0.1 / ordinary)
    replaced = seen[(seen != INFO.mask_id) & (seen != found.labels)]
    assert set(replaced.tolist()) == set(range(5, 50)) - {30}
    counts = np.bincount(replaced, minlength=50)
    assert all(within(counts[i], len(replaced), 1 / ordinary) for i in set(range(5, 50)) - {30})


def test_positions_are_uniform_over_ordinary_tokens():
    ids = jnp.asarray(example(4)[3:])  # no separator inside, no padding
    keys = jax.random.split(jax.random.key(3), 4000)
    draw = jax.vmap(lambda k: mask_tokens(k, ids, num_masked=M, tokenizer=INFO).positions)
    counts = np.bincount(np.asarray(draw(keys)).ravel(), minlength=T)
    assert counts[0] == counts[-1] == 0
    assert all(within(count, len(keys), M / (T - 2)) for count in counts[1:-1])


def test_sequences_with_too_few_tokens_get_weight_zero_and_stay_intact():
    ids = np.full((3, T), INFO.pad_id, np.int32)
    ids[0, 1:4] = [10, 11, 12]
    ids[1, 5] = 13
    found = mask(ids)
    np.testing.assert_array_equal(found.weights.sum(axis=1), [3, 1, 0])
    assert set(found.labels[found.weights > 0].tolist()) == {10, 11, 12, 13}
    unused = np.take_along_axis(found.input_ids, found.positions, axis=1)[found.weights == 0]
    np.testing.assert_array_equal(unused, INFO.pad_id)


def test_the_key_decides_everything_under_jit_too():
    ids = example()
    jitted = jax.jit(mask_tokens, static_argnames=("num_masked", "tokenizer"))
    found = jitted(jax.random.key(7), jnp.asarray(ids), num_masked=M, tokenizer=INFO)
    np.testing.assert_equal(vars(mask(ids, key=7)), vars(on_host(found)))
    assert not np.array_equal(mask(ids, key=7).positions, mask(ids, key=8).positions)


SHARDED = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from b2b_jax.data import TokenizerInfo, mask_tokens

info = TokenizerInfo(50, 0, 4, 2, 3, (0, 1, 2, 3, 4))
ids = np.random.default_rng(0).integers(0, 50, (16, 32), dtype=np.int32)
run = jax.jit(lambda key, ids: mask_tokens(key, ids, num_masked=5, tokenizer=info))
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
plain = run(jax.random.key(0), jnp.asarray(ids))
for spec in (P("a"), P(("a", "b")), P("a", "b")):
    split = run(jax.random.key(0), jax.device_put(ids, NamedSharding(mesh, spec)))
    jax.tree.map(np.testing.assert_array_equal, plain, split)
print("equal on", len(jax.devices()))
"""


def test_eight_devices_mask_as_one_does():
    found = subprocess.run(
        [sys.executable, "-c", SHARDED], capture_output=True, text=True, check=False
    )
    assert found.stdout.strip() == "equal on 8", found.stderr


def test_a_vocabulary_without_mask_token_is_an_error():
    info = TokenizerInfo(50, -1, -1, -1, 0, (0,))
    with pytest.raises(DataError, match=r"no \[MASK\] token"):
        mask_tokens(jax.random.key(0), jnp.ones((2, 4), int), num_masked=1, tokenizer=info)
