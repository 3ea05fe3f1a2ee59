"""Attention probabilities, the donors of heads, and how similar heads are to them."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from flax import linen as nn

from b2b_jax.evaluate import (
    attention_probabilities,
    compare_heads,
    head_donors,
    head_similarity,
)
from b2b_jax.evaluate.layers import model_inputs
from b2b_jax.growth import GrowthError, plan_growth
from b2b_jax.growth.stream import grow_piece
from b2b_jax.models import build_model
from b2b_jax.models.layers import SelfAttention
from b2b_jax.tree import flatten


def attention_calls(model, layer, x, mask):
    """Inputs and outputs of a layer's attention, seen from outside."""
    calls = []

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if isinstance(context.module, SelfAttention) and context.method_name == "__call__":
            calls.append((np.asarray(args[0], np.float64), np.asarray(result)))
        return result

    with nn.intercept_methods(record):
        x = model.run_layer(layer, x, mask=mask)
    return x, calls


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_probabilities_are_those_of_the_equation_and_give_the_models_output(family):
    cfg = tiny.config(family, num_hidden_layers=2)
    model, params, inputs = build_model(cfg), tiny.random_params(cfg), tiny.batch(cfg)
    found = np.asarray(attention_probabilities(model, params, **inputs))
    assert found.shape == (2, 3, cfg.num_attention_heads, 9, 9) and found.dtype == np.float32

    mask = inputs["attention_mask"] > 0
    allowed = np.broadcast_to(np.asarray(mask)[:, None, None, :], found.shape[1:])
    if cfg.is_causal:
        allowed = np.tril(allowed)
    x = model.embed(params, inputs["input_ids"], token_type_ids=inputs.get("token_type_ids"))
    for number in range(2):
        layer = jax.tree.map(lambda leaf: leaf[number], params["layers"])  # noqa: B023
        x, [(read, written)] = attention_calls(model, layer, x, mask)
        weights = {k: np.asarray(v, np.float64) for k, v in flatten(layer["attention"]).items()}

        def project(name):
            kernel, bias = weights[f"{name}/kernel"], weights[f"{name}/bias"]  # noqa: B023
            return np.einsum("btd,dhk->bthk", read, kernel) + bias  # noqa: B023

        scores = np.einsum("bthk,bshk->bhts", project("query"), project("key"))
        scores = np.where(allowed, scores / np.sqrt(cfg.head_dim), -np.inf)
        expected = np.exp(scores - scores.max(-1, keepdims=True))
        expected /= expected.sum(-1, keepdims=True)
        np.testing.assert_allclose(found[number], expected, atol=1e-5)
        mixed = np.einsum("bhts,bshk->bthk", found[number], project("value"))
        out = np.einsum("bthk,hkd->btd", mixed, weights["out/kernel"]) + weights["out/bias"]
        np.testing.assert_allclose(out, written, atol=1e-4)


def provenance(plan, source):
    """Layer and head that every grown head's query and key were copied from, by growing labels."""
    layers, heads, width = source.num_hidden_layers, source.num_attention_heads, source.head_dim
    labels = np.ones(width, np.float32) + np.arange(layers * heads).reshape(layers, heads, 1)
    query, key = (  # biases are copied, and 0 where they are fresh
        np.stack(
            [
                grow_piece(
                    f"layers/attention/{name}/bias",
                    layer,
                    lambda _, number: labels[number],
                    plan=plan,
                )[:, 0].astype(int)
                for layer in range(plan.target_sizes["layers"])
            ]
        )
        for name in ("query", "key")
    )
    np.testing.assert_array_equal(query, key)
    return np.where(query, (query - 1) // heads, -1), np.where(query, (query - 1) % heads, -1)


RULES = (
    {"method": "fpi"},
    {"method": "fpi", "mapping": "uniform", "depth": "interpolate", "seed": 3},
    {"method": "fpi", "maps": {"heads": (2, 2, 0, 1, 1)}},
    {"method": "aki"},
    {"method": "aki", "aki_scope": "hidden", "depth": "middle"},
    {"method": "aki", "mapping": "balanced", "depth": (3, 0, 1, 1, 2, 3), "seed": 1},
    {"method": "direct_copy"},
    {"method": "random"},
)


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "-".join(map(str, rules.values())))
def test_donors_are_where_queries_and_keys_came_from(rules):
    source = tiny.config()
    target = tiny.uneven(source, heads=8, num_hidden_layers=6)
    plan = plan_growth(source, target, **rules)
    donors = head_donors(plan)
    layers, heads = provenance(plan, source)
    np.testing.assert_array_equal(donors.layers, layers)
    np.testing.assert_array_equal(donors.heads, heads)
    assert donors.is_new.tolist() == [False] * 3 + [True] * 5
    if rules == {"method": "aki"}:  # the last layer, and its copies, have none above
        assert donors.layers[:, -1].tolist() == [1, 2, 3, 3, 3, 3]
        assert donors.twins.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_plan_of_another_architecture_has_no_heads():
    plan = plan_growth(
        axes={"up/kernel": "kernel: layers | embed -> mlp"},
        sizes={"layers": 2, "embed": 4, "mlp": (8, 16)},
        norm_position="pre",
        method="fpi",
    )
    with pytest.raises(GrowthError, match="no layers/attention/query/kernel"):
        head_donors(plan)


def compared(method, family="bert", **changes):
    source = tiny.config(family)
    target = tiny.wider(source, **changes)
    params, inputs = tiny.random_params(source), tiny.batch(source)
    plan = plan_growth(source, target, method=method)
    _, seen = model_inputs(inputs)
    before = attention_probabilities(build_model(source), params, **inputs)
    grown = tiny.grow_jitted(params, plan)
    after = attention_probabilities(build_model(target), grown, **inputs)
    return before, after, seen, head_donors(plan)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_fpi_at_an_integer_factor_keeps_every_pattern(family):
    before, after, seen, donors = compared("fpi", family)
    found = compare_heads(before, after, seen=seen, donors=donors)
    np.testing.assert_allclose(found.to_donor, 1, atol=1e-5)
    np.testing.assert_allclose(found.to_twin[:, 3:], 1, atol=1e-5)
    assert np.isnan(found.to_twin[:, :3]).all()
    assert found.any_two < 0.9
    np.testing.assert_array_equal(found.closest_heads, donors.heads)
    np.testing.assert_array_equal(found.closest_layers, donors.layers)


def test_aki_breaks_the_symmetry_of_fpi_but_in_the_last_layer():
    before, after, seen, donors = compared("aki", num_hidden_layers=5)
    found = compare_heads(before, after, seen=seen, donors=donors)
    copied, new = found.groups["copied"], found.groups["new"]
    np.testing.assert_allclose(found.to_donor[0, :3], 1, atol=1e-5)  # reads the same embeddings
    assert found.to_donor[new].mean() < found.to_donor[copied].mean() < 0.999
    assert found.to_twin[:3, 3:].max() < 0.99
    np.testing.assert_allclose(found.to_twin[3:, 3:], 1, atol=1e-5)
    rows = found.describe().splitlines()
    assert rows[0].split("  ")[-1] == "new heads to twin" and rows[1].startswith("layer 0")
    assert rows[6].split()[0] == "all" and rows[6].split()[-1] == f"{found.to_twin[new].mean():.4f}"


def test_heads_without_a_donor_are_compared_with_the_closest():
    before, after, seen, donors = compared("direct_copy", num_hidden_layers=5)
    found = compare_heads(before, after, seen=seen, donors=donors)
    assert np.isnan(found.to_donor[:, 3:]).all() and np.isnan(found.to_donor[4]).all()
    assert np.isfinite(found.to_donor[:4, :3]).all()
    fresh = found.to_closest[found.groups["no donor"]].mean()
    assert found.describe().splitlines()[6].split()[-1] == f"{fresh:.4f}"
    unknown = compare_heads(before, after, seen=seen)
    np.testing.assert_array_equal(unknown.to_closest, found.to_closest)
    assert "donor to closest" in unknown.describe() and "to twin" not in unknown.describe()
    assert unknown.groups["no donor"].all()


def test_similarity_is_the_mean_cosine_of_rows_that_are_no_padding():
    rng = np.random.default_rng(0)
    one, other = (rng.uniform(size=(2, 3, heads, 5, 5)).astype(np.float32) for heads in (2, 4))
    seen = rng.uniform(size=(3, 5)) < 0.6
    found = np.asarray(head_similarity(one, other, seen=seen))
    assert found.shape == (2, 2, 2, 4)
    expected = []
    for b, t in zip(*np.nonzero(seen), strict=True):
        a, c = one[1, b, 0, t].astype(float), other[0, b, 3, t].astype(float)
        expected.append(a @ c / np.linalg.norm(a) / np.linalg.norm(c))
    np.testing.assert_allclose(found[1, 0, 0, 3], np.mean(expected), rtol=1e-5)


def test_the_closest_head_is_found_in_any_layer():
    rng = np.random.default_rng(1)
    source = rng.uniform(size=(3, 2, 4, 5, 5)).astype(np.float32)
    grown = source[[2, 0]][:, :, [3, 1, 1]]
    found = compare_heads(source, grown, seen=np.ones((2, 5), bool))
    assert found.closest_layers.tolist() == [[2] * 3, [0] * 3]
    assert found.closest_heads.tolist() == [[3, 1, 1]] * 2
    np.testing.assert_allclose(found.to_closest, 1, atol=1e-5)
    assert dataclasses.is_dataclass(found) and found.donors is None
