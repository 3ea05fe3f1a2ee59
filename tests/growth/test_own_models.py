"""A model that the package does not know grows by its axis table: an MLP-Mixer, Linen and NNX."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from tiny import assert_trees_close, assert_trees_equal, map_leaves

import b2b_jax as b2b
from b2b_jax.tree import StructureError, flatten

PIXELS, TOKENS, CLASSES = 12, 6, 5


class MixerBlock(nn.Module):
    token_mlp: int
    mlp: int

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="token_norm", epsilon=1e-6)(x).swapaxes(1, 2)
        y = nn.Dense(TOKENS, name="token_down")(
            nn.gelu(nn.Dense(self.token_mlp, name="token_up")(y))
        )
        x = x + y.swapaxes(1, 2)
        y = nn.LayerNorm(name="norm", epsilon=1e-6)(x)
        return x + nn.Dense(x.shape[-1], name="down")(nn.gelu(nn.Dense(self.mlp, name="up")(y)))


class Mixer(nn.Module):
    width: int
    mlp: int
    blocks: int
    token_mlp: int = 9

    @nn.compact
    def __call__(self, patches):
        x = nn.Dense(self.width, name="patches")(patches)
        for number in range(self.blocks):
            x = MixerBlock(self.token_mlp, self.mlp, name=f"block_{number}")(x)
        x = nn.LayerNorm(name="norm", epsilon=1e-6)(x)
        return nn.Dense(CLASSES, name="head")(x.mean(1))


TABLE = {
    "patches/kernel": "kernel: | pixels -> embed",
    "patches/bias": "bias: | -> embed",
    "layers/token_norm/scale": "norm_scale: layers | -> embed",
    "layers/token_norm/bias": "norm_bias: layers | -> embed",
    "layers/token_up/kernel": "kernel: layers | tokens -> token_mlp",
    "layers/token_up/bias": "bias: layers | -> token_mlp",
    "layers/token_down/kernel": "kernel: layers | token_mlp -> tokens",
    "layers/token_down/bias": "bias: layers | -> tokens",
    "layers/norm/scale": "norm_scale: layers | -> embed",
    "layers/norm/bias": "norm_bias: layers | -> embed",
    "layers/up/kernel": "kernel: layers | embed -> mlp",
    "layers/up/bias": "bias: layers | -> mlp",
    "layers/down/kernel": "kernel: layers | mlp -> embed",
    "layers/down/bias": "bias: layers | -> embed",
    "norm/scale": "norm_scale: | -> embed",
    "norm/bias": "norm_bias: | -> embed",
    "head/kernel": "kernel: | embed -> classes",
    "head/bias": "bias: | -> classes",
}
AXES = {path: b2b.Axes.parse(text, init_std=0.02) for path, text in TABLE.items()}


def sizes(width=8, mlp=14, blocks=3):
    return {
        "layers": (3, blocks),
        "embed": (8, width),
        "mlp": (14, mlp),
        "tokens": TOKENS,
        "token_mlp": 9,
        "pixels": PIXELS,
        "classes": CLASSES,
    }


def mixer_plan(width=8, mlp=14, blocks=3, **rules):
    return b2b.plan_growth(
        axes=AXES,
        sizes=sizes(width, mlp, blocks),
        norm_position="pre",
        residual_axes=["tokens"],
        **rules,
    )


@pytest.fixture(scope="module")
def source():
    """Parameters away from zero and one, and patches."""
    model = Mixer(8, 14, 3)
    patches = jax.random.normal(jax.random.key(1), (4, TOKENS, PIXELS))
    rng = np.random.default_rng(0)
    params = model.init(jax.random.key(0), patches)["params"]
    params = map_leaves(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype("f"), params)
    return model, params, patches


@pytest.mark.parametrize(
    ("width", "mlp", "blocks", "rules"),
    [
        (16, 23, 3, {}),
        pytest.param(24, 28, 3, {"split": "unequal", "noise": 1.0}, marks=pytest.mark.slow),
        pytest.param(16, 14, 7, {"depth": "identity"}, marks=pytest.mark.slow),
        (16, 14, 5, {"depth": "identity", "noise": 0.3}),
    ],
    ids=str,
)
def test_a_linen_model_grows_exactly(source, width, mlp, blocks, rules):
    model, params, patches = source
    plan = mixer_plan(width, mlp, blocks, method="fpi", **rules)
    assert plan.is_exact, plan.why_inexact
    stacked = b2b.stack_layers(params, "block_{}")
    grown = b2b.unstack_layers(b2b.grow(stacked, plan), "block_{}")
    expected = model.apply({"params": params}, patches)
    found = Mixer(width, mlp, blocks).apply({"params": grown}, patches)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert float(np.abs(expected).max()) > 0.5
    assert b2b.GrowthPlan.from_json(plan.to_json()) == plan
    assert_trees_close(b2b.shrink(b2b.grow(stacked, plan), plan), stacked, atol=1e-6)


def test_tokens_that_blocks_write_to_must_be_named_to_silence_blocks(source):
    model, params, patches = source
    plan = b2b.plan_growth(
        axes=AXES, sizes=sizes(blocks=5), norm_position="pre", method="fpi", depth="identity"
    )
    grown = b2b.grow(b2b.stack_layers(params, "block_{}"), plan)
    found = Mixer(8, 14, 5).apply({"params": b2b.unstack_layers(grown, "block_{}")}, patches)
    assert float(np.abs(found - model.apply({"params": params}, patches)).max()) > 1e-3


@pytest.mark.slow
def test_aki_and_the_optimizer_of_a_linen_model(source):
    _, params, patches = source
    stacked = b2b.stack_layers(params, "block_{}")
    plan = mixer_plan(16, 28, 6)
    grown = b2b.grow(stacked, plan)
    up = np.asarray(stacked["layers"]["up"]["kernel"])
    # New neurons of layer 0 are those of layer 1, their inputs divided by two copies.
    np.testing.assert_allclose(grown["layers"]["up"]["kernel"][0][:8, 14:], up[1] / 2, rtol=1e-6)
    state = b2b.grow_optimizer_state(optax.adam(1e-3).init(stacked), plan)
    shapes = map_leaves(np.shape, state[0].mu)
    assert shapes == map_leaves(np.shape, grown)
    large = Mixer(16, 28, 6)
    again = large.apply({"params": b2b.unstack_layers(grown, "block_{}")}, patches)
    assert again.shape == (4, CLASSES)


class NnxBlock(nnx.Module):
    """The channel half of a mixer block."""

    def __init__(self, width, mlp, *, rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, mlp, rngs=rngs)
        self.down = nnx.Linear(mlp, width, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


class NnxModel(nnx.Module):
    def __init__(self, width, mlp, blocks, *, rngs):
        self.patches = nnx.Linear(PIXELS, width, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(width, mlp, rngs=rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, patches):
        x = self.patches(patches)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def test_mixing_tokens_leaves_no_entry_the_mean():
    with pytest.raises(b2b.GrowthError, match=r"layers/token_up/kernel, .* work on every entry of"):
        mixer_plan(13, 30, 3, method="fpi", norm="mean_pad")


@pytest.mark.parametrize(
    ("width", "norm"), [pytest.param(16, "plain", marks=pytest.mark.slow), (13, "mean_pad")]
)
def test_an_nnx_model_grows_exactly(width, norm):
    model = NnxModel(8, 14, 2, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    table = {path: axes for path, axes in AXES.items() if "token" not in path}
    plan = b2b.plan_growth(
        axes=table,
        sizes={
            "layers": (2, 4),
            "embed": (8, width),
            "mlp": (14, 20),
            "pixels": PIXELS,
            "classes": CLASSES,
        },
        method="fpi",
        depth="identity",
        norm_position="pre",
        norm=norm,
    )
    assert plan.is_exact
    grown = b2b.unstack_layers(b2b.grow(b2b.stack_layers(params, "blocks/{}"), plan), "blocks/{}")
    large = NnxModel(width, 20, 4, rngs=nnx.Rngs(1))
    state = nnx.state(large, nnx.Param)
    nnx.replace_by_pure_dict(state, grown)
    nnx.update(large, state)
    patches = jax.random.normal(jax.random.key(1), (4, TOKENS, PIXELS))
    # The epsilon of these norms is not scaled for the padding: 1e-6 beside variances of about one.
    np.testing.assert_allclose(large(patches), model(patches), atol=1e-5)


def test_a_leaf_that_the_table_lacks_is_named(source):
    _, params, _ = source
    stacked = b2b.stack_layers(params, "block_{}")
    stacked["extra"] = {"bias": jnp.zeros(3)}
    with pytest.raises(b2b.GrowthError, match=r"unexpected:\n  extra/bias"):
        b2b.grow(stacked, mixer_plan(16, 28, method="fpi"))
    with pytest.raises(b2b.GrowthError, match=r"none given for the axes \['mlp'\]"):
        b2b.plan_growth(axes={"up": "kernel: | width -> mlp"}, sizes={"width": 3})


def test_stacking(source):
    _, params, _ = source
    stacked = b2b.stack_layers(params, "block_{}")
    assert set(stacked) == {"patches", "layers", "norm", "head"}
    assert_trees_equal(b2b.unstack_layers(stacked, "block_{}"), params)
    gap = {name: leaf for name, leaf in params.items() if name != "block_1"}
    with pytest.raises(StructureError, match="block_1"):
        b2b.stack_layers(gap, "block_{}")
    odd = {**params, "block_1": {"norm": params["block_1"]["norm"]}}
    with pytest.raises(StructureError, match="missing:"):
        b2b.stack_layers(odd, "block_{}")
    with pytest.raises(StructureError, match="numbered from 0"):
        b2b.stack_layers(params, "stage_{}")
    assert len(flatten(stacked)) == len(TABLE)
