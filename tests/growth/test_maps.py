"""Index maps: what they copy, how often, and what cannot be one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from b2b_jax.growth import GrowthError, IndexMap
from b2b_jax.growth.mappings import MAPPINGS, cyclic
from b2b_jax.growth.maps import compose, identity, invert

SIZES = st.integers(1, 40).flatmap(lambda s: st.tuples(st.just(s), st.integers(s, 130)))


@given(SIZES, st.sampled_from(sorted(MAPPINGS)), st.integers(0, 99))
def test_every_mapping_is_the_identity_first_and_then_copies(sizes, mapping, seed):
    source, target = sizes
    grown = MAPPINGS[mapping](source, target, np.random.default_rng(seed))
    again = MAPPINGS[mapping](source, target, np.random.default_rng(seed))
    assert grown == again
    assert hash(grown) == hash(again)
    assert grown.indices.tolist()[:source] == list(range(source))
    assert len(grown.indices) == grown.target_size == target
    indices = grown.indices.tolist()
    assert grown.counts.tolist() == [indices.count(i) for i in range(source)]
    assert grown.copies.tolist() == [indices.count(i) for i in indices]
    assert grown.is_even == (len({indices.count(i) for i in range(source)}) == 1)
    assert grown.is_identity == (source == target)
    if mapping != "uniform":
        assert grown.counts.max() - grown.counts.min() <= 1
        assert grown.is_even == (target % source == 0)


def test_random_maps_differ_by_seed_and_uniform_ones_are_uneven():
    def drawn(mapping, seed):
        return MAPPINGS[mapping](50, 100, np.random.default_rng(seed))

    for mapping in ("balanced", "uniform"):
        assert drawn(mapping, 0) != drawn(mapping, 1)
        assert drawn(mapping, 0) != cyclic(50, 100)
    assert not drawn("uniform", 0).is_even
    counts = np.concatenate([drawn("uniform", seed).counts - 1 for seed in range(200)])
    # Sampling with replacement: binomial counts, of mean 1 and variance 1 - 1/50.
    assert counts.mean() == 1
    assert counts.var() == pytest.approx(1 - 1 / 50, abs=0.05)


@given(SIZES, st.integers(0, 60), st.integers(0, 9))
def test_compose_and_invert(sizes, more, seed):
    source, middle = sizes
    rng = np.random.default_rng(seed)
    first = MAPPINGS["uniform"](source, middle, rng)
    second = MAPPINGS["uniform"](middle, middle + more, rng)
    data = rng.normal(size=source)
    both = compose(first, second)
    np.testing.assert_array_equal(data[both.indices], data[first.indices][second.indices])
    assert compose(both, invert(both)).is_identity
    assert invert(identity(source)).is_identity


@pytest.mark.parametrize(("indices", "size"), [([0, 3], 3), ([-2, 0], 3), ([[0, 1]], 3), ([0], 0)])
def test_what_is_no_map(indices, size):
    with pytest.raises(GrowthError, match="index map"):
        IndexMap(np.array(indices), size)


def test_maps_that_do_not_fit():
    with pytest.raises(GrowthError, match="do not compose"):
        compose(cyclic(2, 5), cyclic(4, 8))
    with pytest.raises(GrowthError, match=r"\[2, 3\] have no copy"):
        invert(IndexMap(np.array([0, 1, 0]), 4))


def test_a_map_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        cyclic(2, 4).indices[0] = 1
    assert cyclic(2, 4) != "a map"
