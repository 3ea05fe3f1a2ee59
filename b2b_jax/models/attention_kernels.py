"""Attention kernels: which machines and shapes each is for, and the call of it.

Shape suffixes are those of `layers`: B batch, T tokens, H heads, K head width.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from b2b_jax.models.config import ConfigError, ModelConfig

AttentionKernel = Literal["xla", "cudnn", "splash"]
AttentionChoice = Literal["auto", "xla", "cudnn", "splash"]
AxisNames = tuple[str | None, ...]
Spread = Callable[[Callable[..., Array], tuple[AxisNames, ...], AxisNames], Callable[..., Array]]
"""``(function, axes of its arguments, axes of its result) -> function`` of whole arrays, which
every device of a mesh runs on its own shards."""
HEADS = ("batch", "tokens", "heads", "head_dim")
LANES = 128
"""Width of a TPU's vector registers; splash reads so many tokens at least."""
LARGEST_BLOCK = 512
"""Tokens of a block of splash: a square of float32 scores is 1 MiB of a core's fast memory."""


def alone(
    function: Callable[..., Array], axes: tuple[AxisNames, ...], result: AxisNames
) -> Callable[..., Array]:
    """Run a function as it is: there is one device, or the compiler shares out the work."""
    del axes, result
    return function


def resolve_attention(
    chosen: AttentionChoice, cfg: ModelConfig, *, dtype: str, tokens: int, device: Any
) -> AttentionKernel:
    """The kernel that a program for some device runs.

    "auto" is splash on a TPU, cuDNN's on an NVIDIA GPU, wherever these can be, and XLA's otherwise.

    Args:
        chosen: what the user asks for.
        cfg: sizes of the model.
        dtype: of activations.
        tokens: per sequence.
        device: one of those that the program is compiled for; it need not be here.

    Raises:
        ConfigError: if the kernel that is asked for cannot run there.

    Example:
        >>> cfg, device = ModelConfig(), jax.devices("cpu")[0]
        >>> resolve_attention("auto", cfg, dtype="bfloat16", tokens=512, device=device)
        'xla'
    """
    if chosen == "auto":
        for kernel in ("splash", "cudnn"):
            shapes = attention_problems(kernel, cfg, dtype=dtype, tokens=tokens)
            if not shapes and not _device_problem(kernel, cfg, tokens=tokens, device=device):
                return kernel
        return "xla"
    found = attention_problems(chosen, cfg, dtype=dtype, tokens=tokens)
    if problem := _device_problem(chosen, cfg, tokens=tokens, device=device):
        found.append(f"compute.attention: found {chosen!r}, {problem}")
    if found:
        raise ConfigError("; ".join(found))
    return chosen


def attention_problems(
    kernel: AttentionChoice, cfg: ModelConfig, *, dtype: str, tokens: int
) -> list[str]:
    """Why a kernel cannot run with such arrays, on whatever machine; nothing if it can.

    Args:
        kernel: which one; "auto" and "xla" take everything.
        cfg: sizes of the model.
        dtype: of activations.
        tokens: per sequence.

    Example:
        >>> attention_problems("splash", ModelConfig(), dtype="bfloat16", tokens=100)
        ["compute.attention: found 'splash' for sequences of 100 tokens, expected a multiple of..."]
    """
    found = f"compute.attention: found {kernel!r}"
    problems = []
    if kernel == "splash" and (problem := _splash_problem(tokens)):
        problems.append(problem)
    if kernel == "cudnn" and dtype != "bfloat16":
        problems.append(f"{found} with compute.dtype {dtype!r}, expected 'bfloat16'")
    if kernel == "cudnn" and (cfg.head_dim % 8 or cfg.head_dim > 256):
        problems.append(
            f"{found} for heads of width {cfg.head_dim}, expected a multiple of 8, at most 256"
        )
    return problems


def _splash_problem(tokens: int) -> str:
    if tokens % LANES == 0:
        return ""
    return (
        f"compute.attention: found 'splash' for sequences of {tokens} tokens, expected a multiple "
        f"of {LANES}"
    )


def _device_problem(kernel: AttentionKernel, cfg: ModelConfig, *, tokens: int, device: Any) -> str:
    """Why a kernel cannot run on a device, "" if it can."""
    kind = f"{device.platform} {device.device_kind}".strip()
    if kernel == "splash" and device.platform != "tpu":
        return f"which is for TPUs, on {kind}; leave it 'auto'"
    if kernel != "cudnn":
        return ""
    capability = _capability(device)
    if capability < (8, 0):
        return f"which is for NVIDIA GPUs since Ampere, on {kind}; leave it 'auto'"
    if cfg.head_dim > 128 and capability < (9, 0):
        return f"whose heads are 128 wide at most on {kind}, for heads of width {cfg.head_dim}"
    return _refusal(cfg, tokens)


def _refusal(cfg: ModelConfig, tokens: int) -> str:
    """What JAX has against cuDNN here, such as that it is not installed."""
    array = jax.ShapeDtypeStruct((1, tokens, cfg.num_attention_heads, cfg.head_dim), jnp.bfloat16)
    attention = functools.partial(
        jax.nn.dot_product_attention, is_causal=cfg.is_causal, implementation="cudnn"
    )
    try:
        jax.eval_shape(attention, array, array, array)
    except (RuntimeError, ValueError) as error:  # NotImplementedError is a RuntimeError
        return f"which JAX refuses here ({error}); leave it 'auto'"
    return ""


def _capability(device: Any) -> tuple[int, ...]:
    """Generation of an NVIDIA GPU; nothing of other devices."""
    words = str(getattr(device, "compute_capability", "")).split(".")
    is_cuda = device.platform in ("gpu", "cuda") and all(word.isdigit() for word in words)
    return tuple(map(int, words)) if is_cuda else ()


def attend(
    q_BTHK: Float[Array, "B T H K"],
    k_BTHK: Float[Array, "B T H K"],
    v_BTHK: Float[Array, "B T H K"],
    mask_BT: Bool[Array, "B T"] | None,
    *,
    kernel: AttentionChoice,
    causal: bool,
    spread: Spread = alone,
) -> Float[Array, "B T H K"]:
    """Mix the values by softmax(queries keys / sqrt(K)) (bert2BERT, Eq. 2).

    Args:
        q_BTHK: queries.
        k_BTHK: keys.
        v_BTHK: values.
        mask_BT: True where a token may be attended to; None means everywhere. What comes out for a
            token that may attend to none has no meaning.
        kernel: what computes it. "auto", which a trainer resolves for its devices, is "xla" here,
            and so is "cudnn" where there is a mask.
        causal: whether a token sees itself and earlier ones only.
        spread: brings kernels that the compiler cannot divide to the devices of a mesh.

    Raises:
        ConfigError: if splash cannot cut so many tokens into blocks.
    """
    arrays, axes = (q_BTHK, k_BTHK, v_BTHK), (HEADS, HEADS, HEADS)
    if kernel == "splash":
        if problem := _splash_problem(q_BTHK.shape[1]):
            raise ConfigError(problem)
        if mask_BT is not None:
            arrays, axes = (*arrays, mask_BT), (*axes, ("batch", "tokens"))
        return spread(functools.partial(_splash, causal=causal), axes, HEADS)(*arrays)
    # JAX gives cuDNN a mask as a bias of every pair of tokens, with a gradient.
    if kernel == "cudnn" and mask_BT is None:
        run = functools.partial(
            jax.nn.dot_product_attention, is_causal=causal, implementation="cudnn"
        )
        return spread(run, axes, HEADS)(*arrays)
    mask = None if mask_BT is None else mask_BT[:, None, None, :]
    return jax.nn.dot_product_attention(*arrays, mask=mask, is_causal=causal, implementation="xla")


def _splash(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    mask: Bool[Array, "B T"] | None = None,
    *,
    causal: bool,
) -> Float[Array, "B T H K"]:
    """The blocks of tokens, one after the other, in the fast memory of a TPU's core."""
    # Imported here: Pallas is slow to import, and of use on TPUs only.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, tokens, heads, width = q.shape
    block = max(size for size in range(LANES, LARGEST_BLOCK + 1, LANES) if tokens % size == 0)
    # One kernel for all gradients sums those of the queries over the blocks of keys in a copy of
    # the queries for each: one block needs no sum.
    is_fused = block == tokens
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=None if is_fused else block,
        block_kv_dq=None if is_fused else block,
        use_fused_bwd_kernel=is_fused,
    )
    sees = (splash.CausalMask if causal else splash.FullMask)((tokens, tokens))
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([sees] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1
    )
    segments = None
    if mask is not None:
        # Queries of padding see what others see, as in the other kernels.
        allowed = mask.astype(jnp.int32)
        segments = splash.SegmentIds(q=jnp.ones_like(allowed), kv=allowed)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * width**-0.5, k, v))
    mixed_BHTK: Any = jax.vmap(kernel)(q, k, v, segments)
    return jnp.swapaxes(mixed_BHTK, 1, 2)
