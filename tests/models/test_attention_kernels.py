"""Attention kernels: which is taken where, and that they compute the same."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.experimental.pallas.ops.tpu import splash_attention

from b2b_jax.models import (
    Compute,
    ConfigError,
    ModelConfig,
    attention_kernels,
    attention_problems,
    build_model,
    resolve_attention,
    with_attention,
)
from b2b_jax.models.attention_kernels import attend
from b2b_jax.tree import flatten

CPU = SimpleNamespace(platform="cpu", device_kind="cpu")
TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
H100 = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100", compute_capability="9.0")
A100 = SimpleNamespace(platform="gpu", device_kind="NVIDIA A100", compute_capability="8.0")
V100 = SimpleNamespace(platform="gpu", device_kind="Tesla V100", compute_capability="7.0")
MI300 = SimpleNamespace(platform="gpu", device_kind="MI300X", compute_capability="gfx942")
WIDE = ModelConfig(hidden_size=2 * 192, num_attention_heads=2)
ODD = ModelConfig(hidden_size=2 * 36, num_attention_heads=2)
FACTS = {"dtype": "bfloat16", "tokens": 512}


@pytest.fixture
def with_cudnn(monkeypatch):
    """As if cuDNN were installed."""
    monkeypatch.setattr(attention_kernels, "_refusal", lambda cfg, tokens: "")


@pytest.fixture
def without_cudnn(monkeypatch):
    """JAX as it is where cuDNN is not installed, also where it is."""
    attention = jax.nn.dot_product_attention

    def refuse(*arrays, implementation, **options):
        if implementation == "cudnn":
            raise RuntimeError("cuDNN is not detected.")
        return attention(*arrays, implementation=implementation, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", refuse)


@pytest.fixture
def on_a_cpu(monkeypatch):
    """Interpret splash, which is compiled for TPUs only."""
    make = functools.partial(splash_attention.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha", make)


@pytest.mark.parametrize(
    ("device", "cfg", "facts", "kernel"),
    [
        (CPU, ModelConfig(), {}, "xla"),
        (TPU, ModelConfig(), {}, "splash"),
        (TPU, ModelConfig(), {"dtype": "float32"}, "splash"),
        (TPU, ModelConfig(), {"tokens": 500}, "xla"),
        (H100, ModelConfig(), {}, "cudnn"),
        (H100, ModelConfig(), {"tokens": 500}, "cudnn"),
        (H100, ModelConfig(), {"dtype": "float32"}, "xla"),
        (H100, WIDE, {}, "cudnn"),
        (A100, WIDE, {}, "xla"),
        (A100, ModelConfig(), {}, "cudnn"),
        (H100, ODD, {}, "xla"),
        (V100, ModelConfig(), {}, "xla"),
        (MI300, ModelConfig(), {}, "xla"),
    ],
)
def test_auto_takes_the_kernel_of_the_device_where_it_can(with_cudnn, device, cfg, facts, kernel):
    assert resolve_attention("auto", cfg, **(FACTS | facts), device=device) == kernel
    assert resolve_attention("xla", cfg, **(FACTS | facts), device=device) == "xla"


@pytest.mark.parametrize(
    ("kernel", "device", "cfg", "facts", "message"),
    [
        ("splash", TPU, ModelConfig(), {"tokens": 500}, "500 tokens, expected a multiple of 128"),
        ("splash", H100, ModelConfig(), {}, r"which is for TPUs, on gpu NVIDIA H100"),
        ("splash", CPU, ModelConfig(), {}, r"which is for TPUs, on cpu"),
        ("cudnn", H100, ModelConfig(), {"dtype": "float32"}, "'float32', expected 'bfloat16'"),
        ("cudnn", H100, ODD, {}, "heads of width 36, expected a multiple of 8, at most 256"),
        ("cudnn", A100, WIDE, {}, r"128 wide at most on gpu NVIDIA A100"),
        ("cudnn", V100, ModelConfig(), {}, r"since Ampere, on gpu Tesla V100"),
        ("cudnn", MI300, ModelConfig(), {}, r"NVIDIA GPUs since Ampere, on gpu MI300X"),
        ("cudnn", TPU, ModelConfig(), {}, r"NVIDIA GPUs since Ampere, on tpu"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_with_the_reason(
    with_cudnn, kernel, device, cfg, facts, message
):
    with pytest.raises(ConfigError, match=rf"compute\.attention: found '{kernel}'.*{message}"):
        resolve_attention(kernel, cfg, **(FACTS | facts), device=device)


def test_without_cudnn_auto_is_xla(without_cudnn):
    assert resolve_attention("auto", ModelConfig(), **FACTS, device=H100) == "xla"
    with pytest.raises(ConfigError, match=r"which JAX refuses here \(cuDNN is not detected\.\)"):
        resolve_attention("cudnn", ModelConfig(), **FACTS, device=H100)
    with pytest.raises(RuntimeError, match="cuDNN is not detected"):
        attend(*projections(tokens=8), None, kernel="cudnn", causal=False)


def test_every_reason_is_told_at_once():
    with pytest.raises(ConfigError, match=r"(?s)float32.*width 36.*on cpu"):
        resolve_attention("cudnn", ODD, dtype="float32", tokens=8, device=CPU)
    assert attention_problems("auto", ODD, dtype="float32", tokens=7) == []


def projections(seed: int = 0, rows: int = 2, tokens: int = 128, heads: int = 2, width: int = 16):
    rng = np.random.default_rng(seed)
    return [
        jnp.asarray(rng.normal(size=(rows, tokens, heads, width)), jnp.float32) for _ in range(3)
    ]


def values_and_gradients(kernel, arrays, mask, *, causal):
    # Outputs of padding are left out, as losses leave them out.
    weights = jnp.cos(jnp.arange(arrays[0].size, dtype=jnp.float32)).reshape(arrays[0].shape)
    if mask is not None:
        weights = weights * mask[:, :, None, None]

    def total(*arrays):
        found = attend(*arrays, mask, kernel=kernel, causal=causal)
        return jnp.sum(weights * found), found * (weights != 0)

    gradients, values = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return dict(zip(("values", "queries", "keys", "of values"), (values, *gradients), strict=True))


@pytest.mark.parametrize(
    ("causal", "padded", "tokens"),
    [
        (False, False, 128),
        (True, True, 128),
        pytest.param(True, False, 128, marks=pytest.mark.slow),
        pytest.param(False, True, 128, marks=pytest.mark.slow),
        pytest.param(True, True, 640, marks=pytest.mark.slow),  # five blocks of 128
        pytest.param(False, True, 640, marks=pytest.mark.slow),
    ],
)
def test_splash_computes_what_xla_does(on_a_cpu, causal, padded, tokens):
    arrays = projections(tokens=tokens)
    mask = None
    if padded:
        mask = jnp.arange(tokens)[None, :] < jnp.asarray([[tokens - 37], [tokens]])
    expected = values_and_gradients("xla", arrays, mask, causal=causal)
    found = values_and_gradients("splash", arrays, mask, causal=causal)
    for name, leaf in expected.items():
        assert jnp.abs(leaf).max() > 0.1, name
        np.testing.assert_allclose(found[name], leaf, atol=3e-6, err_msg=name)


def test_cudnn_gets_whole_sequences_and_xla_those_with_padding(monkeypatch):
    seen = []

    def attention(q, k, v, *, mask=None, is_causal, implementation):
        seen.append((implementation, is_causal, None if mask is None else mask.shape))
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    arrays = projections(tokens=6)
    attend(*arrays, None, kernel="cudnn", causal=True)
    attend(*arrays, jnp.ones((2, 6), bool), kernel="cudnn", causal=False)
    attend(*arrays, None, kernel="auto", causal=True)
    assert seen == [("cudnn", True, None), ("xla", False, (2, 1, 1, 6)), ("xla", True, None)]


def test_splash_refuses_tokens_that_blocks_do_not_divide():
    with pytest.raises(ConfigError, match="100 tokens, expected a multiple of 128"):
        attend(*projections(tokens=100), None, kernel="splash", causal=False)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_model_runs_and_shows_its_attention_with_either_kernel(on_a_cpu, family):
    cfg = tiny.config(family, num_hidden_layers=1, max_position_embeddings=128)
    params, inputs = tiny.random_params(cfg), tiny.batch(cfg, rows=2, length=128)
    mask = inputs["attention_mask"].astype(bool)
    lowest = jax.tree.map(lambda leaf: leaf[0], params["layers"])
    found = {}
    for kernel in ("xla", "splash"):
        model = build_model(cfg, compute=Compute(attention=kernel))
        x = model.embed(params, inputs["input_ids"])
        found[kernel] = jax.jit(with_attention(model.run_layer))(lowest, x, mask=mask)
    for expected, other in zip(found["xla"], found["splash"], strict=True):
        np.testing.assert_allclose(other, expected, atol=1e-5)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert {path: leaf.shape for path, leaf in flatten(shapes).items()} == model.shapes
