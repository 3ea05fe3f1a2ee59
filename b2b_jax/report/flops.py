"""FLOPs of training steps, by two accountings.

``electra`` is the published script of ELECTRA (Clark et al., 2020), whose accounting reproduces the
two deterministic entries of bert2BERT's tables to the digit. ``exact`` counts the matrix products
that the compiled program does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from b2b_jax.models import ModelConfig
from b2b_jax.train.stages import SubModel

Accounting = Literal["electra", "exact"]
PAPER_OUTPUT_FRACTION = 0.15625


@dataclass(frozen=True)
class StepCost:
    """FLOPs of one training step over its whole batch, by both accountings."""

    electra: float
    exact: float


def electra_block(cfg: ModelConfig, sequence_length: int) -> float:
    """Forward FLOPs of one layer per token, as ELECTRA's script counts them.

    Example:
        >>> from b2b_jax.models import preset
        >>> electra_block(preset("bert-base"), 512)
        15833093.0
    """
    h, i, a, s = cfg.hidden_size, cfg.intermediate_size, cfg.num_attention_heads, sequence_length
    attention = 3 * 2 * h * h + 3 * h + 2 * h * s + 5 * s * a + 4 * s * a + s * a + 2 * h * s
    # The lone 5 stands for 5h in the script; it is kept so that the figures are the script's.
    attention_output = 2 * h * h + h + 4 * h + h + 5
    feed_forward = 2 * h * i + 8 * i + i + 2 * h * i + h + 4 * h + h + 5 * h
    return float(attention + attention_output + feed_forward)


def electra_input(cfg: ModelConfig, sequence_length: int) -> float:
    """Forward FLOPs of the embeddings per token, with the script's dense one-hot lookup."""
    h = cfg.hidden_size
    return float(2 * h * cfg.vocab_size + 2 * h * (sequence_length + 2) + 2 * h + 5 * h + 4 * h)


def electra_output(cfg: ModelConfig, output_fraction: float) -> float:
    """Forward FLOPs of the language-model head per token.

    Args:
        cfg: sizes.
        output_fraction: share of the tokens that are predicted.
    """
    h, v = cfg.hidden_size, cfg.vocab_size
    return output_fraction * (2 * h * v + 2 * h * h + h + 8 * h + 5 * h + 5 * v + 2 * v)


def electra_step_per_token(
    cfg: ModelConfig,
    sub: SubModel,
    *,
    sequence_length: int,
    output_fraction: float = PAPER_OUTPUT_FRACTION,
) -> float:
    r"""FLOPs of a training step per token by ELECTRA's accounting: backward equals forward.

    $$[d \cdot block + in + out] + [l_b \cdot block + out + in \cdot 1(d = l_b)]$$

    Args:
        cfg: sizes.
        sub: what runs and what is trained; the embeddings' backward pass is charged where they are.
        sequence_length: tokens per sequence.
        output_fraction: share of the tokens that are predicted.
    """
    block = electra_block(cfg, sequence_length)
    before = electra_input(cfg, sequence_length)
    after = electra_output(cfg, output_fraction)
    forward = sub.depth * block + before + after
    backward = sub.live_layers * block + after + before * (sub.embeddings == "trained")
    return forward + backward


def exact_step_per_sequence(
    cfg: ModelConfig, sub: SubModel, *, sequence_length: int, predictions: int
) -> float:
    """FLOPs of all matrix products of a training step, per sequence.

    Lookups cost nothing, the head runs at the predicted positions only, a trained product costs two
    more in the backward pass, and what lies below the lowest trained part is not differentiated:
    there the lowest trained layer of a post-norm model needs no gradient of the inputs of its Q, K
    and V projections. In a pre-norm model a trained norm lies before them.

    Args:
        cfg: sizes.
        sub: what runs and what is trained.
        sequence_length: T.
        predictions: predicted positions per sequence; a causal model's head runs at all T.
    """
    d, f, t, v = cfg.hidden_size, cfg.intermediate_size, sequence_length, cfg.vocab_size
    qkv, out, feed_forward = 3 * 2 * t * d * d, 2 * t * d * d, 2 * 2 * t * d * f
    scores = 2 * 2 * t * t * d
    layer = qkv + out + feed_forward + scores
    forward = sub.depth * layer
    # Each live product: one more for its weights, one more for its input; scores: two inputs.
    backward = sub.live_layers * 2 * layer
    below_is_live = sub.embeddings == "trained"
    if sub.live_layers and not below_is_live and cfg.norm_position == "post":
        backward -= qkv
    if below_is_live:
        # Frozen layers in between still pass the gradient on; scores always have two inputs.
        backward += sub.first_live * (qkv + out + feed_forward + 2 * scores)
    rows = t if cfg.is_causal else predictions
    decoder = 2 * rows * d * v
    transform = 0 if cfg.is_causal else 2 * rows * d * d
    head = decoder + transform
    head_backward = decoder * (2 if sub.output_table == "trained" else 1) + 2 * transform
    return float(forward + backward + head + head_backward)


def step_flops(
    cfg: ModelConfig,
    sub: SubModel,
    *,
    accounting: Accounting,
    batch_size: int,
    sequence_length: int,
    predictions: int,
) -> float:
    """FLOPs of one training step over its whole batch.

    Args:
        cfg: sizes.
        sub: what runs and what is trained.
        accounting: "electra" or "exact".
        batch_size: sequences.
        sequence_length: tokens per sequence.
        predictions: predicted positions per sequence.
    """
    if accounting == "exact":
        return batch_size * exact_step_per_sequence(
            cfg, sub, sequence_length=sequence_length, predictions=predictions
        )
    fraction = 1.0 if cfg.is_causal else predictions / sequence_length
    per_token = electra_step_per_token(
        cfg, sub, sequence_length=sequence_length, output_fraction=fraction
    )
    return batch_size * sequence_length * per_token


def step_cost(
    cfg: ModelConfig, sub: SubModel, *, batch_size: int, sequence_length: int, predictions: int
) -> StepCost:
    """FLOPs of one training step by both accountings.

    Example:
        >>> from b2b_jax.models import preset
        >>> from b2b_jax.train.stages import full_model
        >>> cost = step_cost(preset("bert-base"), full_model(12), batch_size=1,
        ...                  sequence_length=512, predictions=80)
        >>> f"{cost.electra:.6e}"
        '2.511068e+11'
    """

    def by(accounting: Accounting) -> float:
        return step_flops(
            cfg,
            sub,
            accounting=accounting,
            batch_size=batch_size,
            sequence_length=sequence_length,
            predictions=predictions,
        )

    return StepCost(electra=by("electra"), exact=by("exact"))


def forward_cost(
    cfg: ModelConfig, *, batch_size: int, sequence_length: int, predictions: int
) -> StepCost:
    """FLOPs of one batch's predictions by both accountings, as a teacher makes them.

    Args:
        cfg: sizes.
        batch_size: sequences.
        sequence_length: tokens per sequence.
        predictions: predicted positions per sequence; a causal model's head runs at all T.
    """
    d, f, t, layers = (
        cfg.hidden_size,
        cfg.intermediate_size,
        sequence_length,
        cfg.num_hidden_layers,
    )
    rows = t if cfg.is_causal else predictions
    layer = 4 * 2 * t * d * d + 2 * 2 * t * d * f + 2 * 2 * t * t * d
    head = 2 * rows * d * cfg.vocab_size + (0 if cfg.is_causal else 2 * rows * d * d)
    fraction = 1.0 if cfg.is_causal else predictions / t
    per_token = (
        layers * electra_block(cfg, t) + electra_input(cfg, t) + electra_output(cfg, fraction)
    )
    return StepCost(
        electra=batch_size * t * per_token, exact=float(batch_size * (layers * layer + head))
    )


def mean_flops(
    cfg: ModelConfig,
    subs: Sequence[SubModel],
    *,
    accounting: Accounting,
    batch_size: int,
    sequence_length: int,
    predictions: int,
) -> float:
    """FLOPs of an average step of stage one, in which every sub-model is drawn equally often."""
    costs = [
        step_flops(
            cfg,
            sub,
            accounting=accounting,
            batch_size=batch_size,
            sequence_length=sequence_length,
            predictions=predictions,
        )
        for sub in subs
    ]
    return sum(costs) / len(costs)
