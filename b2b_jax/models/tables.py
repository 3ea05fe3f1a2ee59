"""The axis tables of the model families, as data."""

from collections.abc import Sequence

from b2b_jax.axes import Axes, AxisTable


def _block(kernel_std: float, residual_std: float) -> dict[str, Axes]:
    """One stacked transformer block; ``residual_std`` is that of the two output projections."""
    table: dict[str, Axes] = {}
    for name in ("query", "key", "value"):
        table[f"layers/attention/{name}/kernel"] = Axes.parse(
            "kernel: layers | embed -> heads, head_dim", init_std=kernel_std
        )
        table[f"layers/attention/{name}/bias"] = Axes.parse("bias: layers | -> heads, head_dim")
    table |= {
        "layers/attention/out/kernel": Axes.parse(
            "kernel: layers | heads, head_dim -> embed", init_std=residual_std
        ),
        "layers/attention/out/bias": Axes.parse("bias: layers | -> embed"),
        "layers/mlp/up/kernel": Axes.parse("kernel: layers | embed -> mlp", init_std=kernel_std),
        "layers/mlp/up/bias": Axes.parse("bias: layers | -> mlp"),
        "layers/mlp/down/kernel": Axes.parse(
            "kernel: layers | mlp -> embed", init_std=residual_std
        ),
        "layers/mlp/down/bias": Axes.parse("bias: layers | -> embed"),
    }
    for norm in ("attention_norm", "mlp_norm"):
        table |= _norm(f"layers/{norm}", "layers | -> embed")
    return table


def _norm(path: str, axes: str) -> dict[str, Axes]:
    return {
        f"{path}/scale": Axes.parse(f"norm_scale: {axes}"),
        f"{path}/bias": Axes.parse(f"norm_bias: {axes}"),
    }


def bert(std: float, heads: Sequence[str]) -> AxisTable:
    """Axes of the BERT parameters.

    Args:
        std: standard deviation of fresh kernels and embeddings.
        heads: which of "mlm", "pooler", "nsp", "classifier" and "qa" the model has.
    """
    table = {
        "embeddings/token/embedding": Axes.parse("embedding: vocab | -> embed", init_std=std),
        "embeddings/position/embedding": Axes.parse(
            "embedding: positions | -> embed", init_std=std
        ),
        "embeddings/token_type/embedding": Axes.parse("embedding: types | -> embed", init_std=std),
        **_norm("embeddings/norm", "| -> embed"),
        **_block(std, std),
    }
    if "mlm" in heads:
        # The decoder is the token table itself, which cannot be divided by the copy count without
        # changing the lookup, so the norm in front of it is.
        table |= {
            "mlm/transform/kernel": Axes.parse("kernel: | embed -> embed", init_std=std),
            "mlm/transform/bias": Axes.parse("bias: | -> embed"),
            **_norm("mlm/norm", "| -> embed / embed"),
            "mlm/decoder/bias": Axes.parse("bias: | -> vocab"),
        }
    if "pooler" in heads:
        table |= {
            "pooler/dense/kernel": Axes.parse("kernel: | embed -> embed", init_std=std),
            "pooler/dense/bias": Axes.parse("bias: | -> embed"),
        }
    if "nsp" in heads:
        table |= {
            "nsp/classifier/kernel": Axes.parse("kernel: | embed -> nsp_classes", init_std=std),
            "nsp/classifier/bias": Axes.parse("bias: | -> nsp_classes"),
        }
    if "classifier" in heads:
        table |= {
            "classifier/kernel": Axes.parse("kernel: | embed -> labels", init_std=std),
            "classifier/bias": Axes.parse("bias: | -> labels"),
        }
    if "qa" in heads:
        table |= {
            "qa/kernel": Axes.parse("kernel: | embed -> span_ends", init_std=std),
            "qa/bias": Axes.parse("bias: | -> span_ends"),
        }
    return table


def gpt2(std: float, heads: Sequence[str], *, num_layers: int) -> AxisTable:
    """Axes of the GPT-2 parameters.

    Args:
        std: standard deviation of fresh kernels and of the token table; positions get half of it.
        heads: whether the model has "lm", the token table read as a decoder.
        num_layers: depth, by whose root the residual projections' deviation is divided.
    """
    # Without a decoder behind it the final norm is the output, and keeps its scale.
    absorbed = " / embed" if "lm" in heads else ""
    return {
        "embeddings/token/embedding": Axes.parse("embedding: vocab | -> embed", init_std=std),
        "embeddings/position/embedding": Axes.parse(
            "embedding: positions | -> embed", init_std=std / 2
        ),
        **_block(std, std / (2 * num_layers) ** 0.5),
        **_norm("final_norm", f"| -> embed{absorbed}"),
    }
