"""Configs: sizes, presets, parameter counts and complaints."""

import math

import pytest

from b2b_jax.models import ConfigError, ModelConfig, build_model, preset
from b2b_jax.models.config import PRESETS


def parameters(cfg):
    return sum(math.prod(shape) for shape in build_model(cfg).shapes.values())


@pytest.mark.parametrize(
    ("name", "millions"), [("bert-base", 109.48), ("bert-12x512", 53.98), ("bert-6x512", 35.07)]
)
def test_parameter_counts_of_the_paper(name, millions):
    cfg = preset(name).replace(heads=("pooler",))
    assert (cfg.vocab_size, cfg.max_position_embeddings, cfg.type_vocab_size) == (30522, 512, 2)
    assert round(parameters(cfg) / 1e6, 2) == millions


def test_parameter_count_of_gpt2():
    assert round(parameters(preset("gpt2")) / 1e6, 2) == 124.44


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    cfg = preset(name)
    assert cfg.validate() is cfg
    assert ModelConfig.from_dict(cfg.to_dict()) == cfg
    assert cfg.intermediate_size == 4 * cfg.hidden_size
    assert cfg.head_dim == (32 if "tiny" in name else 64)
    assert cfg.norm_position == ("pre" if cfg.family == "gpt2" else "post")
    assert cfg.layer_norm_eps == (1e-12 if cfg.family == "bert" else 1e-5)


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(ConfigError, match="bert-base, bert-large"):
        preset("bert-huge")


def test_all_problems_come_at_once():
    cfg = ModelConfig(
        vocab_size=0,
        hidden_size=10,
        num_attention_heads=3,
        hidden_dropout_prob=1.0,
        attention_probs_dropout_prob=-0.1,
        layer_norm_eps=0.0,
        initializer_range=-1.0,
        heads=("nsp", "lm"),
    )
    for build in (build_model, ModelConfig.axis_sizes):
        with pytest.raises(ConfigError) as error:
            build(cfg)
        message = str(error.value)
        for reason in (
            "vocab_size: found 0",
            "num_attention_heads: found 3, which does not divide hidden_size (10)",
            "[1, 2, 5, 10]",
            "hidden_dropout_prob: found 1.0",
            "attention_probs_dropout_prob: found -0.1",
            "layer_norm_eps: found 0.0",
            "initializer_range: found -1.0",
            "heads: found 'lm'",
            'add "pooler"',
        ):
            assert reason in message
    assert len(cfg.problems()) == 8


def test_no_heads_is_a_problem_and_no_crash():
    assert "num_attention_heads: found 0" in ModelConfig(num_attention_heads=0).problems()[0]
    assert "'mlm'" in ModelConfig(family="gpt2").problems()[0]


def test_axis_tables_cover_every_head():
    bert = ModelConfig(heads=("mlm", "pooler", "nsp"))
    sizes = bert.axis_sizes()
    assert {name for axes in bert.axis_table().values() for name in axes.names} <= set(sizes)
    assert set(bert.replace(heads=()).axis_table()) == {
        path for path in bert.axis_table() if path.startswith(("embeddings", "layers"))
    }
    # The residual stream is one axis; what lives inside a layer never meets it.
    for path, axes in bert.axis_table().items():
        expects_layers = path.startswith("layers/")
        assert (axes.indexed[:1] == ("layers",)) == expects_layers
        assert (axes.absorbs == ("embed",)) == path.startswith("mlm/norm")
