"""Rules of width beyond the paper: mean padding, unequal shares, noise, lists of entries."""

import dataclasses
import inspect

import jax
import numpy as np
import optax
import pytest
import tiny

from b2b_jax.growth import (
    GrowthError,
    GrowthPlan,
    IndexMap,
    copy_distances,
    grow,
    grow_gradient,
    grow_piece,
    learning_rate_scale,
    mean_pad_epsilon,
    plan_growth,
    shrink,
)
from b2b_jax.growth.mappings import interpolated
from b2b_jax.growth.rates import step_gain
from b2b_jax.models import build_model
from b2b_jax.tree import flatten

unchecked_plan_growth = inspect.unwrap(plan_growth)  # without run-time type checks


@pytest.fixture(scope="module")
def gpt():
    return tiny.config("gpt2")


def padded(cfg, heads: int, **changes):
    """A target of any width for norm="mean_pad"."""
    target = tiny.uneven(cfg, heads=heads, **changes)
    epsilon = mean_pad_epsilon(cfg.layer_norm_eps, cfg.hidden_size, target.hidden_size)
    return target.replace(layer_norm_eps=epsilon)


@pytest.mark.parametrize(("heads", "epsilon"), [(4, 1e-5), (5, 0.3), (7, 1e-5), (8, 0.3)])
def test_mean_padding_is_exact_at_any_width_of_a_pre_norm_model(gpt, heads, epsilon):
    source = gpt.replace(layer_norm_eps=epsilon)
    target = padded(source, heads, num_hidden_layers=6)
    plan = plan_growth(source, target, method="fpi", norm="mean_pad", depth="identity")
    assert plan.is_exact, plan.why_inexact
    params, inputs = tiny.random_params(source), tiny.batch(source)
    grown = tiny.grow_jitted(params, plan)
    before, after = tiny.outputs(source, params, inputs), tiny.outputs(target, grown, inputs)
    assert tiny.gap(after, before) < 1e-5
    plain = plan_growth(source, target.replace(layer_norm_eps=epsilon), method="fpi")
    worse = tiny.outputs(
        target.replace(layer_norm_eps=epsilon), tiny.grow_jitted(params, plain), inputs
    )
    assert tiny.gap(worse, before) > 1e-2
    # Kernels that read the padding start fresh: their rows are neither copies nor zero.
    rows = grown["layers"]["mlp"]["up"]["kernel"][:, plan.maps["embed"].is_mean]
    assert float(np.abs(rows).min()) > 0


def test_mean_padding_needs_its_epsilon_and_a_pre_norm_model(gpt):
    target = tiny.uneven(gpt, heads=5)
    with pytest.raises(GrowthError, match=r"layer_norm_eps: found 1e-05, expected 6e-06"):
        plan_growth(gpt, target, method="fpi", norm="mean_pad")
    bert = tiny.config()
    with pytest.raises(GrowthError, match="'mean_pad' is for pre-norm models"):
        plan_growth(bert, padded(bert, 5), method="fpi", norm="mean_pad")
    with pytest.raises(GrowthError, match="direct_copy copies nothing twice"):
        plan_growth(gpt, padded(gpt, 5), method="direct_copy", norm="mean_pad")


RULES = [
    {"split": "unequal"},
    {"noise": 0.5},
    {"split": "unequal", "noise": 2.0, "mapping": "balanced", "seed": 3},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "rules"), [("bert", RULES[0]), ("gpt2", RULES[1]), ("gpt2", RULES[2])], ids=str
)
def test_unequal_shares_and_noise_keep_the_function_and_break_the_tie(family, rules):
    source = tiny.config(family)
    target = tiny.wider(source, factor=3)
    params, inputs = tiny.random_params(source), tiny.batch(source)
    plan = plan_growth(source, target, method="fpi", **rules)
    assert plan.is_exact
    grown = tiny.grow_jitted(params, plan)
    before = tiny.outputs(source, params, inputs)
    assert tiny.gap(tiny.outputs(target, grown, inputs), before) < 1e-5

    same_maps = {name: rules[name] for name in ("mapping", "seed") if name in rules}
    equal = plan_growth(source, target, method="fpi", **same_maps)
    for path, leaf in flatten(tiny.grow_jitted(params, equal)).items():
        changed = not np.array_equal(leaf, flatten(grown)[path])
        summed = bool(equal.axes[path].consumes) or (
            bool(equal.axes[path].absorbs) and "split" in rules
        )
        assert changed == summed, path

    def trained(params, plan):
        model, optimizer = build_model(target), optax.adam(1e-2)

        @jax.jit
        def step(params, state):
            def loss(params):
                logits = model.apply(params, **inputs)
                labels = jax.nn.one_hot(inputs["input_ids"], logits.shape[-1])
                return optax.softmax_cross_entropy(logits, labels).mean()

            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return optax.apply_updates(params, updates), state

        state = optimizer.init(params)
        for _ in range(3):
            params, state = step(params, state)
        return {name: float(x) for name, x in copy_distances(params, plan).items()}

    tied, parted = trained(tiny.grow_jitted(params, equal), equal), trained(grown, plan)
    assert set(tied) == set(parted) == {"embed", "heads", "mlp"}
    for name in tied:
        assert tied[name] < 1e-4 < 1e-3 < parted[name], (name, tied, parted)


def test_copies_of_unequal_shares_divide_the_sources_gradient_among_them():
    """By share within a layer; a norm mixes the gradients of the residual stream's entries."""
    source = tiny.config()
    plan = plan_growth(source, tiny.wider(source), method="fpi", split="unequal")
    params, inputs = tiny.random_params(source), tiny.batch(source)

    def gradient(cfg, params):
        def loss(params):
            return (build_model(cfg).apply(params, **inputs) ** 2).mean()

        return jax.jit(jax.grad(loss))(params)

    small = gradient(source, params)
    found = flatten(gradient(tiny.wider(source), tiny.grow_jitted(params, plan)))
    expected = flatten(grow_gradient(small, plan))
    largest = max(float(np.abs(leaf).max()) for leaf in expected.values())
    for path, leaf in flatten(small).items():
        axes, summed = plan.axes[path], np.asarray(found[path], np.float64)
        if "embed" not in axes.produces:
            np.testing.assert_allclose(
                summed, expected[path], rtol=1e-4, atol=1e-6 * largest, err_msg=path
            )
        for dimension, name in enumerate(axes.names):
            grown = plan.maps[name]
            is_summed = name in axes.produces and not axes.divided[dimension]
            groups = np.eye(grown.source_size)[grown.indices]
            if not is_summed:
                groups = groups / groups.sum(0)  # equal on every copy
            summed = np.moveaxis(np.tensordot(summed, groups, (dimension, 0)), -1, dimension)
        np.testing.assert_allclose(summed, leaf, rtol=1e-4, atol=1e-6 * largest, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("rules", [RULES[2], {"norm": "mean_pad", "noise": 1.0}], ids=str)
def test_pieces_plans_and_jit_agree(gpt, rules):
    target = padded(gpt, 5, num_hidden_layers=6)
    if "norm" not in rules:
        target = target.replace(layer_norm_eps=gpt.layer_norm_eps)
    plan = plan_growth(gpt, target, method="aki", **rules)
    params = tiny.random_params(gpt)
    grown = grow(params, plan)
    again = GrowthPlan.from_json(plan.to_json())
    assert again == plan
    tiny.assert_trees_equal(grow(params, again), grown)
    flat = flatten(params)
    # A compiler may fuse the multiplication with the addition of noise: one rounding less.
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if "noise" in rules else {"rtol": 0, "atol": 0}
    tiny.assert_trees_close(tiny.grow_jitted(params, plan), grown, **tolerance)

    def read(path, layer):
        return np.asarray(flat[path] if layer is None else flat[path][layer])

    for path, leaf in flatten(grown).items():
        layers = range(6) if path.startswith("layers/") else [None]
        pieces = [grow_piece(path, layer, read, plan=plan) for layer in layers]
        found = np.stack(pieces) if path.startswith("layers/") else pieces[0]
        np.testing.assert_array_equal(found, np.asarray(leaf), err_msg=path)


@pytest.mark.parametrize("count", range(1, 41))
def test_shrinking_is_exact_to_one_unit_in_the_last_place(count):
    table = {"kernel": "kernel: | width -> out", "bias": "bias: | -> width"}
    sizes = {"width": (64, 64 * count), "out": 300}
    plan = plan_growth(axes=table, sizes=sizes, method="fpi")
    rng = np.random.default_rng(count)
    kernel = rng.normal(size=(64, 300)) * 10.0 ** rng.integers(-20, 20, size=(64, 300))
    params = {"kernel": np.float32(kernel), "bias": np.float32(rng.normal(size=64))}
    back = shrink(grow(params, plan), plan)
    np.testing.assert_array_equal(back["bias"], params["bias"])
    if count & (count - 1) == 0:
        np.testing.assert_array_equal(back["kernel"], params["kernel"])
    np.testing.assert_array_max_ulp(np.asarray(back["kernel"]), params["kernel"], maxulp=1)


@pytest.mark.parametrize(
    "rules", [{"split": "unequal"}, {"norm": "mean_pad"}, {"noise": 1e-3}, {"depth": "identity"}]
)
def test_every_function_preserving_plan_can_be_undone(gpt, rules):
    target = padded(gpt, 8, num_hidden_layers=6)
    if "norm" not in rules:
        target = tiny.wider(gpt, num_hidden_layers=6)
    plan = plan_growth(gpt, target, method="fpi", **rules)
    params = tiny.random_params(gpt)
    back, expected = flatten(shrink(grow(params, plan), plan)), flatten(params)
    for path, leaf in expected.items():
        if "noise" in rules:
            np.testing.assert_allclose(back[path], leaf, atol=1e-6, err_msg=path)
        else:  # the scale of a padded norm is multiplied twice
            np.testing.assert_array_max_ulp(np.asarray(back[path]), np.asarray(leaf), maxulp=2)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", ["cyclic", "balanced"])
def test_a_step_scaled_by_copies_moves_the_function_as_the_sources_step_does(mapping):
    source = tiny.config()
    target = tiny.wider(source, neurons=50)
    plan = plan_growth(source, target, method="fpi", mapping=mapping)
    params, inputs = tiny.random_params(source), tiny.batch(source)
    rate = 1e-3

    def stepped(cfg, params, *more):
        optimizer = optax.chain(optax.scale_by_adam(eps=1e-30), *more, optax.scale(-rate))

        def loss(params):
            logits = build_model(cfg).apply(params, **inputs)
            labels = jax.nn.one_hot(inputs["input_ids"], logits.shape[-1])
            return optax.softmax_cross_entropy(logits, labels).mean()

        @jax.jit
        def step(params):
            updates, _ = optimizer.update(jax.grad(loss)(params), optimizer.init(params))
            return optax.apply_updates(params, updates)

        return step(params)

    assert plan.is_exact  # or the gradients would differ
    grown = tiny.grow_jitted(params, plan)
    wanted = tiny.outputs(source, stepped(source, params), inputs)["logits"]
    start = tiny.outputs(source, params, inputs)["logits"]
    scaled = stepped(target, grown, learning_rate_scale(plan))
    unscaled = stepped(target, grown)
    moves = {
        name: np.linalg.norm(tiny.outputs(target, tree, inputs)["logits"] - start)
        for name, tree in (("scaled", scaled), ("unscaled", unscaled))
    }
    moved = np.linalg.norm(wanted - start)
    found = tiny.outputs(target, scaled, inputs)["logits"]
    assert np.linalg.norm(found - wanted) < 0.02 * moved
    assert moves["unscaled"] > 1.5 * moved
    assert step_gain(plan) == pytest.approx(2, abs=0.3)


def test_new_tokens_positions_and_types():
    source = tiny.config()
    target = source.replace(vocab_size=128, max_position_embeddings=20, type_vocab_size=9)
    donors = [3, 60] + [0] * 65
    params = tiny.random_params(source)
    token = params["embeddings"]["token"]["embedding"]
    position = params["embeddings"]["position"]["embedding"]

    plan = plan_growth(source, target, method="fpi")
    assert plan.is_exact
    grown = grow(params, plan)
    np.testing.assert_array_equal(grown["embeddings"]["token"]["embedding"][:61], token)
    np.testing.assert_allclose(
        grown["embeddings"]["token"]["embedding"][61:],
        np.tile(np.asarray(token).mean(0), (67, 1)),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        grown["mlm"]["decoder"]["bias"][61:], params["mlm"]["decoder"]["bias"].mean(), atol=1e-6
    )
    np.testing.assert_array_equal(
        grown["embeddings"]["position"]["embedding"],
        np.concatenate([position, position])[:20],
    )
    types = params["embeddings"]["token_type"]["embedding"]
    np.testing.assert_array_equal(
        grown["embeddings"]["token_type"]["embedding"][7:], np.asarray(types)[:2]
    )
    inputs = tiny.batch(source)
    before, after = tiny.outputs(source, params, inputs), tiny.outputs(target, grown, inputs)
    np.testing.assert_allclose(after["logits"][..., :61], before["logits"], atol=1e-5)

    plan = plan_growth(
        source, target, method="fpi", maps={"vocab": donors, "positions": "interpolate"}
    )
    assert not plan.is_exact
    assert "positions renumbers or mixes" in plan.why_inexact[0]
    grown = grow(params, plan)
    np.testing.assert_array_equal(
        grown["embeddings"]["token"]["embedding"][61:], np.asarray(token)[donors]
    )
    places = np.arange(20) * 12 / 19
    expected = np.stack([np.interp(places, np.arange(13), column) for column in position.T], -1)
    np.testing.assert_allclose(grown["embeddings"]["position"]["embedding"], expected, atol=1e-6)
    tiny.assert_trees_close(tiny.grow_jitted(params, plan), grown, rtol=1e-6, atol=1e-7)


def test_roberta_keeps_the_rows_before_its_first_position():
    source = tiny.config("roberta", heads=("mlm",), pad_token_id=1, max_position_embeddings=15)
    target = source.replace(max_position_embeddings=28)
    tiled = plan_growth(source, target, method="fpi").maps["positions"].indices.tolist()
    assert tiled == [0, 1, *range(2, 15), *range(2, 15)]
    spread = plan_growth(source, target, maps={"positions": "interpolate"}).maps["positions"]
    assert spread.indices[:3].tolist() == [0, 1, 2]
    assert spread.indices[-1] == 14
    assert spread.fractions[[0, 1, 2, -1]].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({"vocabulary": "mean"}, "no axis 'vocabulary'; there are"),
        ({"layers": "cyclic"}, "the order of layers is depth="),
        (
            {"mlp": IndexMap(np.arange(37) % 22, 22, fractions=np.full(37, 0.5))},
            "hold copies only$",
        ),
        ({"vocab": "median"}, "vocab: found 'median', expected one of"),
        ({"vocab": [1, 2]}, "vocab: the map goes 61 -> 63, expected 61 -> 70"),
        ({"vocab": [99] * 9}, "vocab: donors: found 99 to 99, expected 0 to 60"),
        ({"mlp": "mean"}, "mlp is summed over by kernels and can hold copies only"),
        ({"heads": IndexMap(np.array([2, 1, 0, 0, 1, 2]), 3)}, "heads must begin with the source"),
    ],
    ids=str,
)
def test_maps_that_cannot_be(maps, message):
    source = tiny.config()
    with pytest.raises(GrowthError, match=message):
        unchecked_plan_growth(source, tiny.wider(source, vocab_size=70), maps=maps)


def test_padding_stays_the_mean_under_aki(gpt):
    """What lies beyond the copies must be zero behind a norm, or fresh kernels would read it."""
    target = padded(gpt, 5)
    plan = plan_growth(gpt, target, method="aki", norm="mean_pad")
    params, inputs = tiny.random_params(gpt), tiny.batch(gpt)
    grown = tiny.grow_jitted(params, plan)
    hidden = np.asarray(build_model(target).hidden(grown, **inputs))
    pad = plan.maps["embed"].is_mean
    np.testing.assert_allclose(
        hidden[..., pad], np.tile(hidden.mean(-1, keepdims=True), pad.sum()), atol=1e-4
    )


def test_the_map_of_a_normed_axis_is_not_given_twice(gpt):
    with pytest.raises(GrowthError, match="embed is mapped by norm 'mean_pad'; leave it out"):
        plan_growth(gpt, padded(gpt, 5), method="fpi", norm="mean_pad", maps={"embed": "cyclic"})


@pytest.mark.parametrize(("source", "target"), [(5, 99), (2, 50), (79, 80), (1, 4), (9, 100)])
def test_interpolation_ends_at_the_last_entry(source, target):
    grown = interpolated(source, target)
    places = grown.indices + grown.fractions
    np.testing.assert_allclose(places, np.linspace(0, source - 1, target), atol=1e-5)
    assert grown.fractions.max() < 1
    assert (grown.indices[-1], grown.fractions[-1]) == (source - 1, 0)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"noise": float("nan")}, "noise: found nan"),
        ({"sizes": {"width": 4, "mlp": 8, "colour": 3}}, r"no parameter has the axes \['colour'\]"),
        ({"axes": {}, "sizes": {}}, "found no parameter"),
        ({"method": "direct_copy"}, "direct_copy needs the init_std of up"),
    ],
    ids=str,
)
def test_tables_that_cannot_be_grown(rules, message):
    table = {"up": "kernel: layers | width -> mlp", "bias": "bias: layers | -> mlp"}
    sizes = {"width": 4, "mlp": (3, 6), "layers": 2}
    fields = {"axes": table, "sizes": sizes, "method": "fpi"} | rules
    if rules.get("sizes"):
        fields["sizes"] = {**rules["sizes"], "layers": 2}
    with pytest.raises(GrowthError, match=message):
        unchecked_plan_growth(**fields)


def test_silent_layers_must_be_known():
    table = {
        "layers/up": "kernel: layers | embed -> mlp",
        "layers/down": "kernel: layers | mlp -> embed",
    }
    fields = {
        "axes": table,
        "sizes": {"layers": (2, 4), "embed": 4, "mlp": 8},
        "method": "fpi",
        "depth": "identity",
        "norm_position": "pre",
    }
    with pytest.raises(GrowthError, match="none can be silenced; name its axes in residual_axes"):
        plan_growth(**fields)
    plan = plan_growth(**fields, residual_axes=["embed"])
    assert plan.is_silenced("layers/down")
    assert not plan.is_silenced("layers/up")


def test_what_is_drawn_needs_a_deviation():
    table = {"up": "kernel: | width -> mlp", "norm/scale": "norm_scale: | -> width"}
    sizes = {"width": (4, 6), "mlp": (3, 6)}
    with pytest.raises(GrowthError, match="noise needs the init_std of up"):
        plan_growth(axes=table, sizes=sizes, method="fpi", noise=0.1)
    with pytest.raises(GrowthError, match="'mean_pad' needs the init_std of up"):
        plan_growth(axes=table, sizes=sizes, method="fpi", norm="mean_pad", norm_position="pre")


def test_plans_of_the_first_format_are_read(gpt):
    plan = plan_growth(gpt, tiny.wider(gpt), method="fpi")
    text = plan.to_json().replace('"format": 2', '"format": 1')
    for name in ("norm", "split", "noise", "norm_scales", "residual_axes"):
        value = getattr(plan, name)
        text = text.replace(f', "{name}": {dataclasses.asdict(plan)[name]!r}'.replace("'", '"'), "")
        assert f'"{name}": {value}' not in text
    assert GrowthPlan.from_json(text) == plan
