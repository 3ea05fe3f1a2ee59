"""Uneven widths: which norm notices, and a map with factors that they notice less."""

import itertools

import jax
import numpy as np
import pytest
import tiny

import b2b_jax as b2b
from b2b_jax.growth import GrowthError, IndexMap, NormCalibration, calibrate_norms, plan_growth
from b2b_jax.growth.calibration import norm_error
from b2b_jax.models import build_model, with_norm_inputs, with_weighted_norms


def features(seed: int, width: int = 7) -> np.ndarray:
    """Two layers of what a norm may read: entries of unlike size, some of them correlated."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(2, 60, width)) @ rng.normal(size=(width, width))
    return mixed * rng.uniform(0.2, 3, size=width) + rng.normal(size=width)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("target", [10, 17])
def test_no_other_choice_is_much_better(seed, target):
    inputs = {"norm/scale": features(seed)}
    found = calibrate_norms(inputs, target=target)
    whole, extra = divmod(target, 7)
    assert found.grown.starts_with_identity
    assert sorted(found.grown.counts) == [whole] * (7 - extra) + [whole + 1] * extra
    errors = []
    for chosen in itertools.combinations(range(7), extra):
        grown = IndexMap(np.concatenate([np.tile(np.arange(7), whole), chosen]), 7)
        # The best factor for this choice, by a search that knows nothing of the formula.
        best = [
            min(
                norm_error({"norm/scale": layer[None]}, NormCalibration(grown, {"norm/scale": [f]}))
                for f in np.linspace(0.8, 1.2, 21)
            )
            for layer in inputs["norm/scale"]
        ]
        errors.append(np.mean(best))
    assert norm_error(inputs, found) <= 1.3 * min(errors)
    assert norm_error(inputs, found) < np.median(errors)


def test_an_even_width_needs_nothing():
    found = calibrate_norms({"norm/scale": features(0)}, target=14)
    assert found.grown.is_even
    np.testing.assert_allclose(found.scales["norm/scale"], 1, atol=1e-9)
    assert norm_error({"norm/scale": features(0)}, found) < 1e-20


def test_calibrating_for_an_even_width_changes_nothing():
    source = tiny.config()
    params, ids = tiny.random_params(source), tiny.batch(source)["input_ids"]
    found = b2b.calibrate(source, params, ids, hidden_size=30)
    assert set().union(*found.scales.values()) == {1.0}
    assert plan_growth(source, tiny.wider(source), method="fpi", norm=found).is_exact
    bent = NormCalibration(found.grown, found.scales | {"embeddings/norm/scale": [0.5]})
    plan = plan_growth(source, tiny.wider(source), method="fpi", norm=bent)
    assert plan.why_inexact == ("calibrated factors change the norms",)
    short = NormCalibration(found.grown, {"layers/mlp_norm/scale": [1.0], "mlm/norm/bias": [1.0]})
    with pytest.raises(GrowthError, match=r"1 factors, expected 4(.|\n)*'mlm/norm/bias', which is"):
        plan_growth(source, tiny.wider(source), method="fpi", norm=short)


def test_padding_and_constant_inputs_give_numbers():
    source = tiny.config()
    inputs = tiny.batch(source, rows=80)
    inputs["attention_mask"] = inputs["attention_mask"].at[:60].set(0)
    found = b2b.calibrate(source, tiny.random_params(source), inputs, hidden_size=25)
    assert np.isfinite([f for factors in found.scales.values() for f in factors]).all()
    assert set(calibrate_norms({"n": np.ones((1, 9, 4))}, target=6).scales["n"]) == {1.0}
    with pytest.raises(GrowthError, match="all of one width"):
        calibrate_norms({"a": np.ones((1, 9, 4)), "b": np.ones((1, 9, 5))}, target=6)


def test_weighted_norms_compute_at_the_sources_size_what_the_grown_model_computes():
    source = tiny.config()
    target = tiny.uneven(source, num_hidden_layers=4)
    plan = plan_growth(source, target, method="fpi", mapping="uniform", seed=2)
    params, inputs = tiny.random_params(source), tiny.batch(source)
    model = build_model(source)
    weights = jax.numpy.asarray(plan.maps["embed"].counts / target.hidden_size)
    weighted = with_weighted_norms(model.apply, weights)(params, **inputs)
    grown = build_model(target).apply(tiny.grow_jitted(params, plan), **inputs)
    plain = model.apply(params, **inputs)
    np.testing.assert_allclose(weighted, grown, atol=2e-4)
    assert float(np.abs(plain - grown).max()) > 0.1


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_calibration_lowers_the_gap_of_an_uneven_width(family):
    source = tiny.config(family)
    target = tiny.uneven(source)
    params = tiny.random_params(source)
    calibration, fresh = tiny.batch(source, seed=1, rows=24), tiny.batch(source, seed=2, rows=24)
    found = b2b.calibrate(source, params, calibration, hidden_size=target.hidden_size)

    def report(**rules):
        plan = plan_growth(source, target, method="fpi", **rules)
        grown = tiny.grow_jitted(params, plan)
        return b2b.verify(source, params, target, grown, fresh, plan=plan), plan

    calibrated, plan = report(norm=found)
    cyclic, _ = report()
    uniform, _ = report(mapping="uniform")
    assert plan.norm == "calibrated"
    assert not plan.is_exact
    assert "as little as calibration could" in plan.why_inexact[0]
    relative = [entry.outputs[0].relative for entry in (calibrated, cyclic, uniform)]
    assert relative[0] < min(relative[1:]), relative
    assert b2b.GrowthPlan.from_json(plan.to_json()) == plan
    back = b2b.shrink(b2b.grow(params, plan), plan)
    tiny.assert_trees_close(back, params, rtol=1e-6)


def test_calibration_is_for_one_width():
    source = tiny.config()
    ids = tiny.batch(source)["input_ids"]
    found = b2b.calibrate(source, tiny.random_params(source), ids, hidden_size=25)
    with pytest.raises(GrowthError, match=r"calibration is for 15 -> 25, but embed goes 15 -> 20"):
        plan_growth(source, tiny.uneven(source, heads=4), norm=found)
    with pytest.raises(GrowthError, match="at least one norm, all of one width, and two tokens"):
        calibrate_norms({}, target=4)


def test_verify_names_the_norms_that_add_to_the_gap():
    source = tiny.config()
    params, inputs = tiny.random_params(source), tiny.batch(source)

    def norms(target, tamper=None, **rules):
        plan = plan_growth(source, target, method="fpi", **rules)
        grown = tiny.grow_jitted(params, plan)
        if tamper is not None:
            grown = tamper(grown)
        return b2b.verify(source, params, target, grown, inputs, plan=plan)

    exact = norms(tiny.wider(source))
    assert {norm.name for norm in exact.norms} == {
        "embeddings/norm",
        "mlm/norm",
        *(f"layer {i} {name}" for i in range(4) for name in ("attention_norm", "mlp_norm")),
    }
    assert max(norm.relative_error for norm in exact.norms) < 1e-6
    assert exact.describe_norms() == ""
    uneven = norms(tiny.uneven(source))
    assert min(norm.relative_error for norm in uneven.norms) > 1e-3
    assert len(uneven.describe_norms(most=3).splitlines()) == 3

    def spoil(grown):
        scale = grown["layers"]["mlp_norm"]["scale"]
        return grown | {
            "layers": grown["layers"]
            | {"mlp_norm": grown["layers"]["mlp_norm"] | {"scale": scale.at[2].mul(1.1)}}
        }

    spoiled = norms(tiny.wider(source), spoil)
    bad = [norm.name for norm in spoiled.norms if norm.relative_error > 1e-3]
    assert bad == ["layer 2 mlp_norm"]
    assert spoiled.describe_norms().startswith("layer 2 mlp_norm")
    # Layers that are copies of others are compared with what those read.
    deeper = norms(tiny.wider(source, num_hidden_layers=6))
    assert max(norm.relative_error for norm in deeper.norms) < 1e-6
    assert sum(norm.name.startswith("layer") for norm in deeper.norms) == 12


def test_layers_are_compared_with_those_that_they_copy():
    source = tiny.config("gpt2")
    target = tiny.wider(source, num_hidden_layers=7)
    params, inputs = tiny.random_params(source), tiny.batch(source)

    def layers(**rules):
        plan = plan_growth(source, target, **rules)
        grown = tiny.grow_jitted(params, plan)
        return b2b.verify(source, params, target, grown, inputs, plan=plan).layers

    exact = layers(method="fpi", depth="identity")
    assert max(layer.relative_error for layer in exact) < 1e-5
    assert [layer.source_name for layer in exact][-2:] == ["layer 2", "layer 3"]
    # What direct_copy adds is fresh and is not compared.
    fresh = layers(method="direct_copy")
    assert fresh[0].relative_error < 1e-6


def test_norms_of_a_pre_norm_model_with_padding():
    source = tiny.config("gpt2")
    target = tiny.uneven(source, heads=5).replace(layer_norm_eps=6e-6)
    plan = plan_growth(source, target, method="fpi", norm="mean_pad")
    params = tiny.random_params(source)
    report = b2b.verify(
        source, params, target, tiny.grow_jitted(params, plan), tiny.batch(source), plan=plan
    )
    assert len(report.norms) == 9
    assert max(norm.relative_error for norm in report.norms) < 1e-6
    assert max(layer.relative_error for layer in report.layers) < 1e-5


def test_what_norms_read():
    model = build_model(tiny.config(num_hidden_layers=1))
    params, inputs = tiny.random_params(model.cfg), tiny.batch(model.cfg)
    hidden = model.hidden(params, **inputs)
    logits, read = jax.jit(with_norm_inputs(model.logits))(params, hidden)
    np.testing.assert_allclose(logits, model.logits(params, hidden), atol=1e-5)
    assert set(read) == {"norm"}
    norm = params["mlm"]["norm"]
    x = np.asarray(read["norm"])
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    table = params["embeddings"]["token"]["embedding"]
    expected = (normed * norm["scale"] + norm["bias"]) @ table.T + params["mlm"]["decoder"]["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-3)
