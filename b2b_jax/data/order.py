"""The order of an endless stream of windows: a new shuffle every epoch, at any positions at once.

Every epoch is a permutation of the windows that a small block cipher gives (Simon's rounds, as in
Beaulieu et al., 2013, and Black and Rogaway's cycle walking: what falls outside is enciphered
again), so that the window at any position is known without the ones before it. But for lengths of
4^k + 1 windows, k at least 8, where the block is one number too small: there one window comes twice
in an epoch and the last one not at all.

It is the order of Grain 0.2, ``MapDataset.range(length).seed(seed).shuffle().repeat()``, number for
number: runs and results from when Grain computed it stay what they are. Grain asks for one index at
a time, which took most of the time of reading a batch; and a run must be able to go on under later
versions of Grain, which may order otherwise.
"""

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Int, Int64, UInt64

ROUNDS = 4
"""And keys; `_round_keys` is written out for this number."""
SMALLEST_BLOCK = 16
"""Bits of the numbers that are enciphered, at least."""
FEW = 2 ** (SMALLEST_BLOCK - 2)
"""Lengths below fill less than a quarter of their block, and walks would be long."""
STRETCH = 2**16
"""Positions whose windows are computed together."""
WORD = 0xFFFFFFFF


def shuffled(positions: Int[np.ndarray, " N"], *, length: int, seed: int) -> Int[np.ndarray, " N"]:
    """Which window stands at each position of the endless order.

    Args:
        positions: from 0; ``length`` of them are an epoch.
        length: how many windows there are.
        seed: of the order.

    Example:
        >>> shuffled(np.arange(8), length=4, seed=0)
        array([1, 2, 3, 0, 0, 3, 1, 2])
    """
    epochs, within = np.divmod(positions, length)
    numbers = within // STRETCH
    of_batch = epochs * (length // STRETCH + 1) + numbers  # where it is the same, both are
    found = np.empty_like(within)
    for first in np.unique(of_batch, return_index=True)[1]:
        here = of_batch == of_batch[first]
        # The same sum as Grain's, which starts from a seed of its own.
        of_epoch = (_first_seed(seed) + int(epochs[first])) % 2**32
        stretch = _stretch(length, of_epoch, int(numbers[first]))
        found[here] = stretch[within[here] % STRETCH]
    return found


@lru_cache
def _first_seed(seed: int) -> int:
    # The 1 is how far Grain's shuffle stands behind its seed.
    return int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint32)[0])


@lru_cache(maxsize=8)  # batches come from one or two; threads that read ahead may need the next
def _stretch(length: int, seed: int, number: int) -> Int64[np.ndarray, " N"]:
    """A part of an epoch's permutation: enciphering many numbers costs little more than a few."""
    if length == 1:
        return np.zeros(1, np.int64)
    if length < FEW:
        return _whole_epoch(length, seed)
    bits = max(math.ceil(math.log2(length - 1)), SMALLEST_BLOCK)
    bits, keys = bits + bits % 2, _round_keys(seed)
    within = np.arange(number * STRETCH, min((number + 1) * STRETCH, length), dtype=np.uint64)
    found = _encipher(within, keys, bits)
    outside = np.flatnonzero(found >= length)
    while outside.size:
        found[outside] = _encipher(found[outside], keys, bits)
        outside = outside[found[outside] >= length]
    return found.astype(np.int64)


def _whole_epoch(length: int, seed: int) -> Int64[np.ndarray, " length"]:
    """The permutation of a short epoch: all walks at once, their lengths doubled every time."""
    block = np.arange(2**SMALLEST_BLOCK)
    onward = _encipher(block.astype(np.uint64), _round_keys(seed), SMALLEST_BLOCK).astype(np.int64)
    reached = np.where(block < length, block, onward)
    for _ in range(SMALLEST_BLOCK):
        reached = reached[reached]
    return reached[onward[:length]]


def _encipher(
    values: UInt64[np.ndarray, " N"], keys: tuple[int, ...], bits: int
) -> UInt64[np.ndarray, " N"]:
    """Simon's rounds on numbers of so many bits, an even number of rounds."""
    half = bits // 2
    mask = 2**half - 1

    def turned(x: np.ndarray, by: int) -> np.ndarray:
        return (x << by | x >> (half - by)) & mask

    def mixed(x: np.ndarray) -> np.ndarray:
        return turned(x, 1) & turned(x, 8) ^ turned(x, 2)

    left, right = values >> half & mask, values & mask
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        left = left ^ mixed(right) ^ (first & mask)
        right = right ^ mixed(left) ^ (second & mask)
    return left << half | right


def _round_keys(seed: int) -> tuple[int, ...]:
    """The keys of the rounds: four numbers of `std::seed_seq` of C++, from one."""
    keys = [0x8B8B8B8B] * ROUNDS

    def folded(x: int) -> int:
        return x ^ x >> 27

    for k, extra in enumerate((1, 1 + seed, 2, 3)):
        one, two = (k + 1) % ROUNDS, (k + 2) % ROUNDS
        added = 1664525 * folded(keys[k] ^ keys[one] ^ keys[k - 1]) & WORD
        keys[one] = keys[one] + added & WORD
        keys[k] = added + extra & WORD
        keys[two] = keys[two] + keys[k] & WORD
    for k in range(ROUNDS):
        one, two = (k + 1) % ROUNDS, (k + 2) % ROUNDS
        taken = 1566083941 * folded(keys[k] + keys[one] + keys[k - 1] & WORD) & WORD
        keys[one] ^= taken
        keys[k] = taken - k & WORD
        keys[two] ^= keys[k]
    return tuple(keys)
