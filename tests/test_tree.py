"""Trees by path."""

import numpy as np
import pytest
from flax.core import freeze
from hypothesis import given
from hypothesis import strategies as st

from b2b_jax.tree import (
    StructureError,
    check_structure,
    difference,
    flatten,
    map_with_path,
    unflatten,
)

KEYS = st.text("abc_", min_size=1, max_size=3)
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        st.integers(), lambda inner: st.dictionaries(KEYS, inner, min_size=1), max_leaves=12
    ),
)


@given(TREES)
def test_flatten_and_unflatten_are_inverse(tree):
    flat = flatten(tree)
    assert unflatten(flat) == tree
    assert flatten(unflatten(flat)) == flat
    assert not any(isinstance(leaf, dict) for leaf in flat.values())
    assert flatten(freeze(tree)) == flat


@given(TREES)
def test_mapping_visits_every_leaf_once(tree):
    flat = flatten(tree)
    paths = flatten(map_with_path(lambda path, leaf, twice: (path, leaf, twice), tree, tree))
    assert paths == {path: (path, leaf, leaf) for path, leaf in flat.items()}


def test_the_order_is_sorted_at_every_level():
    assert list(flatten({"b": {"z": 1, "a": 2}, "a": 3})) == ["a", "b/a", "b/z"]


def test_difference_and_structure_errors_list_everything():
    found = {"a": np.ones(2), "b": {"c": np.ones((2, 3)), "d": np.ones(1)}}
    expected = {"a": (2,), "b/c": (3, 2), "e": (1,), "f": ()}
    differs = difference(flatten(found), expected)
    assert differs.missing == ("e", "f")
    assert differs.unexpected == ("b/d",)
    assert differs.wrong_shape == ("b/c: found (2, 3), expected (3, 2)",)
    with pytest.raises(StructureError) as error:
        check_structure(found, expected, where="a test")
    for part in ("of a test", "missing:\n  e\n  f", "unexpected:\n  b/d", "wrong shape:\n  b/c"):
        assert part in str(error.value)


def test_no_difference_is_false():
    differs = difference({"a": np.ones((2, 1))}, {"a": [2, 1]})
    assert not differs
    assert str(differs) == "no difference"
    check_structure({"a": np.ones((2, 1))}, {"a": (2, 1)}, where="a test")
