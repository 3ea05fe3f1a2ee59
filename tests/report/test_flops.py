"""Both FLOPs counts, against published figures and a count by hand."""

import pytest

from b2b_jax.models import ModelConfig, preset
from b2b_jax.report.chips import peak_flops
from b2b_jax.report.flops import (
    electra_block,
    electra_input,
    electra_output,
    electra_step_per_token,
    exact_step_per_sequence,
    mean_flops,
    step_cost,
    step_flops,
)
from b2b_jax.train.stages import SubModel, TwoStageConfig, full_model, sub_models

BASE = preset("bert-base")
SUBS = sub_models(12, TwoStageConfig(steps=1, layers_per_block=3))


def electra_run(cfg: ModelConfig, *, steps: float, batch: int, length: int, fraction: float):
    per_token = electra_step_per_token(
        cfg,
        full_model(cfg.num_hidden_layers),
        sequence_length=length,
        output_fraction=fraction,
    )
    return per_token * steps * batch * length


def test_electra_parts_of_bert_base():
    assert electra_block(BASE, 512) == 15_833_093
    assert electra_input(BASE, 512) == 47_679_744
    assert electra_output(BASE, 0.15625) == pytest.approx(7_544_663.4, abs=0.1)


@pytest.mark.parametrize(
    ("cfg", "schedule", "expected"),
    [
        (BASE, {"steps": 1e6, "batch": 256, "length": 512, "fraction": 0.15625}, 6.428335104e19),
        (
            preset("bert-large"),
            {"steps": 1e6, "batch": 256, "length": 512, "fraction": 0.15625},
            1.91720905883648e20,
        ),
    ],
)
def test_electra_totals_of_published_models(cfg, schedule, expected):
    assert electra_run(cfg, **schedule) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "per_sequence"),
    [
        ("bert-base", 2.511068e11),
        ("bert-12x512", 1.287193e11),
        ("bert-6x512", 8.319432e10),
        ("bert-12x384", 8.203681e10),
    ],
)
def test_electra_sequences_of_the_papers_models(name, per_sequence):
    cfg = preset(name)
    full = full_model(cfg.num_hidden_layers)
    found = step_flops(
        cfg, full, accounting="electra", batch_size=1, sequence_length=512, predictions=80
    )
    assert found == pytest.approx(per_sequence, rel=1e-6)


def ratio(sub: SubModel) -> float:
    args = {"accounting": "electra", "batch_size": 2, "sequence_length": 512, "predictions": 80}
    return step_flops(BASE, sub, **args) / step_flops(BASE, full_model(12), **args)


def test_sub_model_ratios_and_the_papers_two_deterministic_savings():
    assert [round(ratio(sub), 4) for sub in SUBS] == [0.4189, 0.4185, 0.5154, 0.6122]
    args = {"accounting": "electra", "batch_size": 1, "sequence_length": 512, "predictions": 80}
    partial = mean_flops(BASE, SUBS, **args) / step_flops(BASE, full_model(12), **args)
    assert partial == pytest.approx(0.491263, abs=5e-7)
    # E_b = 20 of 40 epochs; MSLT: 32 partial and 20 full epochs against 40.
    assert round(100 * (1 - (20 * partial + 20) / 40), 2) == 25.44
    assert round(100 * (1 - (32 * partial + 20) / 40), 2) == 10.70


def by_hand(cfg, *, live, run, embeddings, table, tokens, predictions):
    """Add the products up one by one: [m, k] x [k, n] costs 2mkn."""
    d, f, v = cfg.hidden_size, cfg.intermediate_size, cfg.vocab_size
    total = 0
    for layer in range(run):
        is_live = layer in live
        passes_down = embeddings or any(below in live for below in range(layer))
        for rows, inner, columns, after_input in (
            *[(tokens, d, d, False)] * 3,
            (tokens, d, d, True),
            (tokens, d, f, True),
            (tokens, f, d, True),
        ):
            product = 2 * rows * inner * columns
            total += product
            total += product if is_live else 0  # gradient of the weights
            # Something trained lies before it: a product, or in a pre-norm model the norm.
            before = after_input or cfg.norm_position == "pre"
            gradient_needed = passes_down or (is_live and before)
            total += product if gradient_needed else 0
        scores = 2 * 2 * tokens * tokens * d
        total += scores + (2 * scores if is_live or passes_down else 0)
    decoder = 2 * (tokens if cfg.is_causal else predictions) * d * v
    transform = 0 if cfg.is_causal else 2 * predictions * d * d
    return total + decoder * (3 if table else 2) + transform * 3


@pytest.mark.parametrize(
    ("sub", "live", "embeddings", "table"),
    [
        (SubModel(4, 0, "trained", "trained"), range(4), True, True),
        (SubModel(2, 0, "trained", "trained"), range(2), True, True),
        (SubModel(4, 2, "frozen", "frozen"), range(2, 4), False, False),
        (SubModel(3, 2, "frozen", "trained"), range(2, 3), False, True),
        (SubModel(4, 2, "trained", "trained"), range(2, 4), True, True),
    ],
)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_exact_count_equals_a_count_by_hand(family, sub, live, embeddings, table):
    cfg = ModelConfig(
        family=family,
        heads=("lm",) if family == "gpt2" else ("mlm",),
        vocab_size=11,
        hidden_size=6,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=10,
    )
    expected = by_hand(
        cfg,
        live=set(live),
        run=sub.depth,
        embeddings=embeddings,
        table=table,
        tokens=7,
        predictions=3,
    )
    assert exact_step_per_sequence(cfg, sub, sequence_length=7, predictions=3) == expected
    cost = step_cost(cfg, sub, batch_size=5, sequence_length=7, predictions=3)
    assert cost.exact == 5 * expected


def test_peaks_go_by_the_devices_own_names():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == peak_flops("TPU v5") == 459e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("cpu") is None
