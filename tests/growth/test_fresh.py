"""DirectCopy and random growth: what is copied and how the rest is drawn."""

import jax
import numpy as np
import pytest
import tiny

from b2b_jax.growth import plan_growth
from b2b_jax.models import build_model
from b2b_jax.tree import flatten

# The deviation of a normal variable that is cut at two deviations.
TRUNCATED = 0.87962566


def check_fresh(path, entries, init_std):
    """A sample of a fresh leaf: of which distribution it must be."""
    if path.endswith("scale"):
        assert (entries == 1).all(), path
    elif path.endswith("bias"):
        assert (entries == 0).all(), path
    else:
        assert init_std > 0
        assert entries.size > 50, path
        assert np.abs(entries).max() <= 2 * init_std * (1 + 1e-6), path
        few = 6 / np.sqrt(2 * entries.size)
        assert entries.std() == pytest.approx(TRUNCATED * init_std, rel=few), path
        assert abs(entries.mean()) < 5 * init_std / np.sqrt(entries.size), path


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_direct_copy_keeps_the_leading_corner(family):
    source = tiny.config(family)
    target = tiny.wider(source, 3, neurons=90, num_hidden_layers=6, initializer_range=0.05)
    plan = plan_growth(source, target, method="direct_copy")
    assert not plan.is_exact
    params = flatten(tiny.random_params(source))
    grown = flatten(tiny.grow_jitted(tiny.random_params(source), plan))
    for path, leaf in grown.items():
        corner = tuple(slice(size) for size in params[path].shape)
        np.testing.assert_array_equal(leaf[corner], params[path], err_msg=path)
        rest = np.ones(leaf.shape, bool)
        rest[corner] = False
        if rest.any():
            check_fresh(path, np.asarray(leaf)[rest], target.axis_table()[path].init_std)


@pytest.mark.parametrize("method", ["direct_copy", "random"])
def test_seeds_decide_the_fresh_part(method):
    source = tiny.config()
    target = tiny.wider(source)
    params = tiny.random_params(source)
    first, again, other = (
        tiny.grow_jitted(params, plan_growth(source, target, method=method, seed=seed))
        for seed in (1, 1, 2)
    )
    tiny.assert_trees_equal(first, again)
    for path, leaf in flatten(first).items():
        differs = not np.array_equal(leaf, flatten(other)[path])
        assert differs == path.endswith(("kernel", "embedding")), path


def test_leaves_of_one_shape_are_drawn_apart():
    source = tiny.config()
    plan = plan_growth(source, tiny.wider(source), method="random")
    attention = tiny.grow_jitted(tiny.random_params(source), plan)["layers"]["attention"]
    query, key = attention["query"]["kernel"], attention["key"]["kernel"]
    assert abs(np.corrcoef(np.ravel(query), np.ravel(key))[0, 1]) < 0.1
    assert not np.array_equal(query[0], query[1])


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_random_growth_and_init_draw_from_one_distribution(family):
    """The axis table's init_std and the modules' initialisers cannot drift apart."""
    source = tiny.config(family)
    target = tiny.wider(source, 4, neurons=100, initializer_range=0.03)
    plan = plan_growth(source, target, method="random")
    table = target.axis_table()
    grown = flatten(tiny.grow_jitted(tiny.random_params(source), plan))
    initial = flatten(build_model(target).init(jax.random.key(0)))
    assert grown.keys() == initial.keys() == table.keys()
    for path in table:
        assert grown[path].shape == initial[path].shape
        check_fresh(path, np.asarray(grown[path]), table[path].init_std)
        check_fresh(path, np.asarray(initial[path]), table[path].init_std)


def test_init_std_of_each_family():
    """BERT: one deviation for all. GPT-2: half for positions, 1/sqrt(2 L) for residual writers."""
    bert = tiny.config(initializer_range=0.03).axis_table()
    drawn = {path: axes.init_std for path, axes in bert.items() if axes.init_std}
    assert set(drawn.values()) == {0.03}
    assert set(drawn) == {path for path in bert if path.endswith(("kernel", "embedding"))}
    gpt2 = tiny.config("gpt2", initializer_range=0.03, num_hidden_layers=8).axis_table()
    assert gpt2["embeddings/token/embedding"].init_std == 0.03
    assert gpt2["embeddings/position/embedding"].init_std == 0.015
    for path in ("layers/attention/out/kernel", "layers/mlp/down/kernel"):
        assert gpt2[path].init_std == pytest.approx(0.03 / 4)
    assert gpt2["layers/mlp/up/kernel"].init_std == 0.03
