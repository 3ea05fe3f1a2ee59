"""Everything that matters of what a model of ours computes."""

import numpy as np


def ours(model, params: dict, fields: dict) -> dict:
    """The outputs of every head; of a model without heads its hidden and pooled states."""
    return model.outputs(params, model.hidden(params, **fields))


def assert_close(found: dict, expected: dict, mask: np.ndarray) -> None:
    """Equal but for rounding, wherever the mask lets a position be seen."""
    assert found.keys() == expected.keys()
    for name, output in expected.items():
        seen = (mask > 0) if output.ndim == 3 else ...
        left, right = np.asarray(found[name])[seen], np.asarray(output)[seen]
        np.testing.assert_allclose(left, right, atol=1e-4, err_msg=name)
        assert np.abs(right).max() > 0.1
