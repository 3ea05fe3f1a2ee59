"""Tiny models whose axes all differ in size and whose parameters are all away from 0 and 1."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from b2b_jax.growth import grow
from b2b_jax.models import ModelConfig, build_model
from b2b_jax.tree import flatten, unflatten

grow_jitted = jax.jit(grow, static_argnums=1)


def config(family: str = "bert", **changes) -> ModelConfig:
    """A model without two axes of one size: a swapped or transposed axis cannot go unseen."""
    fields = {
        "family": family,
        "vocab_size": 61,
        "hidden_size": 15,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "intermediate_size": 22,
        "max_position_embeddings": 13,
        "type_vocab_size": 7,
        "heads": ("mlm", "pooler", "nsp"),
    }
    if family == "gpt2":
        fields |= {"type_vocab_size": 1, "heads": ("lm",), "hidden_act": "gelu_new"}
        fields |= {"layer_norm_eps": 1e-5}
    return ModelConfig(**(fields | changes))


def wider(cfg: ModelConfig, factor: int = 2, neurons: int = 37, **changes) -> ModelConfig:
    """An integer factor of width, with an uneven number of neurons."""
    return cfg.replace(
        hidden_size=factor * cfg.hidden_size,
        num_attention_heads=factor * cfg.num_attention_heads,
        intermediate_size=neurons,
        **changes,
    )


def uneven(cfg: ModelConfig, heads: int = 5, neurons: int = 37, **changes) -> ModelConfig:
    """A width that is no multiple of the source's."""
    return cfg.replace(
        hidden_size=heads * cfg.head_dim,
        num_attention_heads=heads,
        intermediate_size=neurons,
        **changes,
    )


def random_params(cfg: ModelConfig, seed: int = 0, dtype=np.float32) -> dict:
    """Every leaf random, norms and biases too; large enough that every path matters."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, shape in sorted(build_model(cfg).shapes.items()):
        noise = rng.normal(size=shape)
        if path.endswith("scale"):
            flat[path] = 1 + 0.3 * noise
        elif path.endswith("bias"):
            flat[path] = 0.3 * noise
        elif path.endswith("embedding"):
            flat[path] = 0.5 * noise
        else:
            flat[path] = noise * 0.8 / np.sqrt(cfg.hidden_size)
    return unflatten({path: jnp.asarray(leaf, dtype) for path, leaf in flat.items()})


def batch(cfg: ModelConfig, seed: int = 0, rows: int = 3, length: int = 9) -> dict:
    """Token ids, a mask with padding, and segment ids that use every type."""
    rng = np.random.default_rng(seed)
    mask = np.ones((rows, length), np.int32)
    mask[0, -3:] = 0
    fields = {
        "input_ids": rng.integers(cfg.vocab_size, size=(rows, length)),
        "attention_mask": mask,
    }
    if cfg.family == "bert":
        fields["token_type_ids"] = rng.integers(cfg.type_vocab_size, size=(rows, length))
    return {name: jnp.asarray(field, jnp.int32) for name, field in fields.items()}


def outputs(cfg: ModelConfig, params: dict, inputs: dict) -> dict[str, np.ndarray]:
    """Everything that a model computes, as the package computes it."""
    model = build_model(cfg)

    def compute(params):
        hidden = model.hidden(params, **inputs)
        found = {}
        if {"mlm", "lm"} & set(cfg.heads):
            found["logits"] = model.logits(params, hidden)
        if "pooler" in cfg.heads:
            found["pooled"] = model.pooled(params, hidden)
        if "nsp" in cfg.heads:
            found["nsp"] = model.next_sentence_logits(params, hidden)
        return found

    found = jax.jit(compute)(params)
    return {name: np.asarray(value) for name, value in found.items()}


def gap(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest difference of any output but the pooled vector, relative to its scale.

    The pooled vector is as wide as the model; what reads it, the NSP logits, is compared instead.
    """
    return max(
        float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max())
        for name in expected
        if name != "pooled"
    )


def assert_trees_equal(found: dict, expected: dict) -> None:
    """Bit-equal leaves of equal dtype under equal paths."""
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype, path
        np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(leaf), err_msg=path)


def assert_trees_close(found: dict, expected: dict, **tolerance) -> None:
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(
            np.asarray(found[path], np.float64), leaf, err_msg=path, **tolerance
        )


def map_leaves(function: Callable, tree: dict) -> dict:
    return unflatten({path: function(leaf) for path, leaf in flatten(tree).items()})
