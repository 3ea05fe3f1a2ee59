"""Growth piece by piece is growth at once, bit for bit, and reads no more than two layers."""

import numpy as np
import pytest
import tiny

from b2b_jax.growth import grow, grow_piece, plan_growth
from b2b_jax.tree import flatten

CASES = [
    ("fpi", {}),
    ("aki", {}),
    ("aki", {"aki_scope": "hidden", "mapping": "uniform", "depth": "interpolate"}),
    ("direct_copy", {}),
    ("random", {}),
]


@pytest.mark.parametrize(("method", "options"), CASES)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_pieces_equal_the_whole(family, method, options):
    source = tiny.config(family)
    target = tiny.wider(source, 2, neurons=50, num_hidden_layers=source.num_hidden_layers + 2)
    if family == "gpt2" and method == "fpi":
        options = {"depth": "identity"}
    plan = plan_growth(source, target, method=method, seed=3, **options)
    params = tiny.random_params(source)
    flat, expected = flatten(params), flatten(grow(params, plan))
    read_layers: set[int] = set()

    def read(path, layer):
        if layer is None:
            return flat[path]
        read_layers.add(layer)
        return flat[path][layer]

    for path, axes in plan.axes.items():
        if axes.indexed[:1] != ("layers",):
            piece = grow_piece(path, None, read, plan=plan)
            np.testing.assert_array_equal(piece, expected[path], err_msg=path)
            continue
        for layer in range(target.num_hidden_layers):
            read_layers.clear()
            piece = grow_piece(path, layer, read, plan=plan)
            np.testing.assert_array_equal(piece, expected[path][layer], err_msg=path)
            assert len(read_layers) <= 2
