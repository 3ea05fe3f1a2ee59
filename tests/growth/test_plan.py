"""The plan as data: stored, replayed, explained, refused, inverted, compiled and sharded."""

import inspect
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from b2b_jax.axes import Axes
from b2b_jax.growth import GrowthError, GrowthPlan, grow, plan_growth, shrink
from b2b_jax.models import ConfigError
from b2b_jax.tree import flatten, unflatten

unchecked_plan_growth = inspect.unwrap(plan_growth)  # without run-time type checks


@pytest.fixture(scope="module")
def source():
    return tiny.config()


@pytest.fixture(scope="module")
def params(source):
    return tiny.random_params(source)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "fpi", "mapping": "balanced"},
        {"method": "aki", "aki_scope": "hidden", "depth": "interpolate"},
        {"method": "direct_copy", "seed": 5},
        {"method": "random", "mapping": "uniform"},
    ],
    ids=lambda options: options["method"],
)
def test_a_stored_plan_is_equal_and_replays_bit_for_bit(source, params, options):
    target = tiny.uneven(source, num_hidden_layers=6)
    plan = plan_growth(source, target, **options)
    again = GrowthPlan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.maps == plan.maps
    assert again.axes == plan.axes
    assert again.source == source.to_dict()
    assert type(source).from_dict(again.target) == target
    tiny.assert_trees_equal(tiny.grow_jitted(params, again), tiny.grow_jitted(params, plan))
    assert json.loads(plan.to_json())["format"] == 2


def test_every_choice_makes_another_plan(source):
    target = tiny.wider(source, num_hidden_layers=6)
    plans = [
        plan_growth(source, target, **options)
        for options in (
            {},
            {"method": "fpi"},
            {"mapping": "balanced"},
            {"mapping": "balanced", "seed": 1},
            {"depth": "interpolate"},
            {"aki_scope": "hidden"},
        )
    ]
    assert len(set(plans)) == len(plans)
    assert plan_growth(source, target) == plans[0]
    assert plans[0] != "a plan"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not a growth plan"),
        ("[]", "not a growth plan"),
        ("{}", "not a growth plan"),
        ('{"format": 1, "seed": 0}', "not a growth plan"),
        ('{"format": 99, "library_version": "7"}', "format 99.*b2b_jax 7"),
    ],
)
def test_what_is_no_plan(text, reason):
    with pytest.raises(GrowthError, match=reason):
        GrowthPlan.from_json(text)


def test_a_stored_map_is_checked(source):
    fields = json.loads(plan_growth(source, tiny.wider(source)).to_json())
    fields["maps"]["embed"]["indices"][3] = 99
    with pytest.raises(GrowthError, match="index map"):
        GrowthPlan.from_json(json.dumps(fields))


@pytest.mark.parametrize("method", ["fpi", "aki", "direct_copy", "random"])
def test_the_description_names_every_parameter(source, method):
    target = tiny.uneven(source, num_hidden_layers=7)
    plan = plan_growth(source, target, method=method)
    text = plan.describe()
    first_words = [line.split()[0] for line in text.splitlines() if line.strip()]
    for path in source.axis_table():
        assert first_words.count(path) == 1
    lines = {line.split()[0]: line for line in text.splitlines()}
    up = lines["layers/mlp/up/kernel"]
    assert "(4, 15, 22)" in up
    assert "(7, 25, 37)" in up
    copies = method in ("fpi", "aki")
    assert ("divide by copies of embed" in up) == copies
    assert ("new mlp from layer l+1" in up) == (method == "aki")
    assert ("divide by copies of embed" in lines["mlm/norm/bias"]) == copies
    assert "divide" not in lines["layers/mlp_norm/bias"]
    assert ("layer order: [0, 1, 2, 3, 1, 2, 3]" in text) == copies
    # Only what copies can copy unevenly or run layers again.
    assert ("statistics of every LayerNorm" in text) == copies
    assert ("runs layers again" in text) == copies
    assert text.splitlines()[-1].startswith("not exact: ")


def test_the_rules_of_an_exact_plan(source):
    plan = plan_growth(source, source.replace(intermediate_size=30), method="fpi")
    assert plan.rule("embeddings/token/embedding") == "copy"
    assert plan.rule("layers/mlp/down/kernel") == "gather mlp; divide by copies of mlp"
    assert plan.rule("layers/mlp/up/bias") == "gather mlp"
    assert "exact: the grown model computes the source's function" in plan.describe()
    gpt2 = tiny.config("gpt2")
    deeper = plan_growth(gpt2, gpt2.replace(num_hidden_layers=6), method="fpi", depth="identity")
    assert "zero in layers [1, 4]" in deeper.rule("layers/mlp/down/bias")
    assert "zero" not in deeper.rule("layers/mlp/up/bias")


def test_a_plan_is_a_static_argument(source, params):
    traced = []

    @jax.jit
    def identity(tree):
        return tree

    def grow_once(tree, plan):
        traced.append(plan)
        return identity(grow(tree, plan))

    compiled = jax.jit(grow_once, static_argnums=1)
    target = tiny.wider(source)
    plan = plan_growth(source, target, method="fpi")
    first = compiled(params, plan)
    second = compiled(params, GrowthPlan.from_json(plan.to_json()))
    assert len(traced) == 1
    tiny.assert_trees_equal(first, second)
    tiny.assert_trees_close(first, tiny.map_leaves(np.asarray, grow(params, plan)), rtol=2e-7)


def test_all_reasons_come_at_once(source):
    target = source.replace(
        hidden_size=24,
        num_attention_heads=4,
        intermediate_size=20,
        num_hidden_layers=2,
        vocab_size=50,
        hidden_act="relu",
        layer_norm_eps=1e-6,
        heads=("mlm",),
    )
    with pytest.raises(GrowthError) as error:
        unchecked_plan_growth(
            source, target, method="x", mapping="y", depth="identity", aki_scope="z", seed=-1
        )
    for reason in (
        "method: found 'x'",
        "mapping: found 'y'",
        "aki_scope: found 'z'",
        "seed: found -1",
        "head_dim: 5 -> 6",
        "mlp shrinks: 22 -> 20",
        "layers shrinks: 4 -> 2",
        "vocab shrinks: 61 -> 50",
        "hidden_act: the source has 'gelu', the target 'relu'",
        "layer_norm_eps",
        "heads: the source has",
        "depth 'identity' is for pre-norm models",
    ):
        assert reason in str(error.value)


def test_refusals_say_what_to_set(source):
    with pytest.raises(GrowthError, match="num_attention_heads to 6"):
        plan_growth(source, source.replace(hidden_size=30))
    with pytest.raises(GrowthError, match="hidden_size 18 is no multiple"):
        plan_growth(source, source.replace(hidden_size=18))
    with pytest.raises(GrowthError, match="family: the source has 'bert', the target 'gpt2'"):
        plan_growth(source, tiny.config("gpt2"))
    # 16 // 3 is the source's head_dim, but no model has such heads.
    with pytest.raises(ConfigError, match="does not divide hidden_size"):
        plan_growth(source, source.replace(hidden_size=16))


def test_missing_unexpected_and_misshapen_leaves_are_listed_together(source, params):
    plan = plan_growth(source, tiny.wider(source), method="fpi")
    flat = flatten(params)
    del flat["mlm/decoder/bias"]
    flat["layers/mlp/gate/kernel"] = jnp.ones((4, 15, 22))
    flat["layers/mlp/up/kernel"] = flat["layers/mlp/up/kernel"].swapaxes(1, 2)
    flat["nsp/classifier/bias"] = jnp.ones(3)
    for change in (grow, shrink):
        with pytest.raises(GrowthError) as error:
            change(unflatten(flat), plan)
        message = str(error.value)
        assert "missing:\n  mlm/decoder/bias" in message
        assert "unexpected:\n  layers/mlp/gate/kernel" in message
        assert "nsp/classifier/bias: found (3,), expected (2,)" in message
        assert "layers/mlp/up/kernel: found (4, 22, 15), expected" in message


@pytest.mark.parametrize(
    ("factor", "dtype", "depth"),
    [(2, "float32", "stack"), (4, "bfloat16", "interpolate"), (2, "bfloat16", "identity")],
)
def test_shrinking_undoes_powers_of_two_bit_for_bit(factor, dtype, depth):
    source = tiny.config("gpt2")
    target = tiny.wider(source, factor, neurons=22 * factor, num_hidden_layers=7)
    plan = plan_growth(source, target, method="fpi", depth=depth, mapping="balanced")
    params = tiny.random_params(source, dtype=dtype)
    tiny.assert_trees_equal(shrink(tiny.grow_jitted(params, plan), plan), params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mapping", ["cyclic", "uniform"])
def test_shrinking_undoes_other_counts_to_the_last_place(source, mapping, dtype):
    target = tiny.uneven(source, heads=8, neurons=70)
    plan = plan_growth(source, target, method="fpi", mapping=mapping)
    assert {3} <= set(plan.maps["embed"].counts.tolist())
    params = tiny.random_params(source, dtype=dtype)
    back, before = flatten(shrink(grow(params, plan), plan)), flatten(params)
    for path, leaf in before.items():
        assert back[path].dtype == leaf.dtype
        found, expected = (np.asarray(x, np.float64) for x in (back[path], leaf))
        # One unit in the last place is at most eps times the value.
        limit = float(jnp.finfo(dtype).eps) * np.abs(expected)
        assert (np.abs(found - expected) <= limit).all(), path


@pytest.mark.parametrize("method", ["aki", "direct_copy", "random"])
def test_only_function_preserving_plans_are_undone(source, params, method):
    target = tiny.wider(source)
    with pytest.raises(GrowthError, match=f"this one is '{method}'"):
        shrink(tiny.random_params(target), plan_growth(source, target, method=method))


class Perceptron:
    """Somebody else's model: an axis table is all that growth needs, and it has no layers."""

    norm_position = "pre"

    def __init__(self, mlp):
        self.sizes = {"inputs": 3, "mlp": mlp, "outputs": 2}

    def axis_sizes(self):
        return self.sizes

    def axis_table(self):
        return {
            "up/kernel": Axes.parse("kernel: | inputs -> mlp", init_std=1.0),
            "up/bias": Axes.parse("bias: | -> mlp"),
            "down/kernel": Axes.parse("kernel: | mlp -> outputs", init_std=1.0),
        }

    def invariants(self):
        return {}

    def to_dict(self):
        return dict(self.sizes)


@pytest.mark.parametrize("method", ["fpi", "aki"])
def test_a_model_of_ones_own_without_layers(method):
    plan = plan_growth(Perceptron(4), Perceptron(7), method=method, mapping="uniform")
    assert plan.is_exact  # AKI too: there is no layer above to take from
    assert "layer order" not in plan.describe()
    assert GrowthPlan.from_json(plan.to_json()) == plan
    rng = np.random.default_rng(0)
    shapes = plan.source_shapes.items()
    small = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes}
    large = flatten(grow(unflatten(small), plan))
    x = rng.normal(size=(5, 3))

    def outputs(p):
        return np.maximum(x @ p["up/kernel"] + p["up/bias"], 0) @ np.asarray(p["down/kernel"])

    np.testing.assert_allclose(outputs(large), outputs(small), rtol=1e-4, atol=1e-5)


SHARDED = """
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
import tiny
from jax.sharding import NamedSharding, PartitionSpec
from b2b_jax.growth import grow, plan_growth
from b2b_jax.tree import flatten, unflatten

mesh = jax.make_mesh((2, 4), ("data", "model"))
source = tiny.config(hidden_size=16, num_attention_heads=4, intermediate_size=24)
target = tiny.wider(source, 2, neurons=40, num_hidden_layers=6)
params = tiny.random_params(source)
over = {"embed": "data", "heads": "model", "mlp": "model"}
for method in ("aki", "direct_copy"):
    plan = plan_growth(source, target, method=method)
    shardings = {}
    for path, axes in plan.axes.items():
        spec = [over.get(name) for name in axes.names]
        if axes.names.count("embed") == 2:
            spec[-1] = None
        shardings[path] = NamedSharding(mesh, PartitionSpec(*spec))
    compiled = jax.jit(grow, static_argnums=1, out_shardings=unflatten(shardings))
    sharded = flatten(compiled(params, plan))
    for path, leaf in flatten(grow(params, plan)).items():
        assert sharded[path].sharding == shardings[path], path
        np.testing.assert_allclose(sharded[path], leaf, rtol=2e-6, err_msg=path)
    kernel = sharded["layers/mlp/up/kernel"]
    assert len(kernel.sharding.device_set) == 8
    assert kernel.addressable_shards[0].data.shape == (6, 16, 10)
print("ok")
"""


@pytest.mark.slow
def test_growth_into_shards_of_eight_devices():
    """In a process of its own: the number of devices is fixed when JAX starts."""
    environment = os.environ | {"PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ok"]
