"""The order of windows is Grain's, number for number, and stays so whatever Grain does later."""

import grain
import numpy as np
import pytest

from b2b_jax.data.order import FEW, STRETCH, shuffled

# Around every change of method; more bits are enciphered from 4**8 on, the length of a stretch.
FEWEST = [1, 2, 3, 100, FEW - 1, FEW, FEW + 1]
MORE = [STRETCH, STRETCH + 1, STRETCH + 2, 196_078, 4**15 + 7]


@pytest.mark.parametrize("length", [*FEWEST, *MORE])
@pytest.mark.parametrize(
    "seed",
    [
        0,
        pytest.param(2**32 - 1, marks=pytest.mark.slow),
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2021, marks=pytest.mark.slow),
    ],
)
def test_the_order_is_that_of_grain(length, seed):
    grains = grain.MapDataset.range(length).seed(seed).shuffle().repeat(10)
    near = np.arange(-3, 3)
    ends = np.concatenate([length + near, STRETCH + near, 3 * STRETCH + near])
    anywhere = np.random.default_rng([length, seed]).integers(0, 10 * length, 60)
    positions = np.concatenate([ends, anywhere])
    positions = positions[(positions >= 0) & (positions < 10 * length)]
    expected = [grains[int(position)] for position in positions]
    np.testing.assert_array_equal(shuffled(positions, length=length, seed=seed), expected)


@pytest.mark.parametrize("length", [7, FEW + 5, 200_003])
def test_an_epoch_has_every_window_once(length):
    for epoch in (0, 3):
        positions = np.arange(epoch * length, (epoch + 1) * length)
        found = shuffled(positions, length=length, seed=3)
        np.testing.assert_array_equal(np.sort(found), np.arange(length))


def test_the_order_stays_what_it_was():
    # Written down, because a later Grain may order otherwise and then cannot be asked.
    positions = np.asarray([0, 1, 2, 999, 1000, 1001])
    assert shuffled(positions, length=1000, seed=1).tolist() == [344, 776, 991, 170, 916, 734]
    assert shuffled(positions + 10**12, length=10**6, seed=1).tolist() == [
        668756,
        734677,
        599783,
        111712,
        33172,
        125117,
    ]
