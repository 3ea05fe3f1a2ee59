"""config.json of Hugging Face <-> ModelConfig, both ways, as pure functions."""

from collections.abc import Mapping
from typing import Any

from b2b_jax.convert.errors import ConvertError
from b2b_jax.convert.tables import ARCHITECTURES, HEADLESS
from b2b_jax.models import ModelConfig
from b2b_jax.models.config import Activation, Family

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
}
"""Names of activations there and here; the tanh approximations differ in rounding only."""

ENCODER_FIELDS = {
    name: name
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "type_vocab_size",
        "layer_norm_eps",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "initializer_range",
    )
}
GPT2_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "hidden_dropout_prob": "resid_pdrop",
    "attention_probs_dropout_prob": "attn_pdrop",
    "initializer_range": "initializer_range",
}
"""Our fields and theirs."""

# What each field means when config.json leaves it out, as in the library's own classes.
DEFAULTS: dict[Family, dict[str, Any]] = {
    "bert": {},
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
    "gpt2": {
        "vocab_size": 50257,
        "max_position_embeddings": 1024,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_new",
        "type_vocab_size": 1,
    },
}
# Settings that change what a model computes, and the only value that ours compute.
FIXED: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}


def from_hf(values: Mapping[str, Any], *, where: str) -> ModelConfig:
    """Read the values of a config.json.

    Args:
        values: its parsed JSON.
        where: the file, for messages.

    Raises:
        ConvertError: lists everything in it that is not supported, and what is.
    """
    family = values.get("model_type")
    if family not in DEFAULTS:
        raise ConvertError(
            f"{where}: model_type {family!r} is not supported; supported are {sorted(DEFAULTS)}"
        )
    problems = [
        f"{name}: found {values[name]!r}, only {value!r} is supported"
        for name, value in FIXED.items()
        if values.get(name, value) != value
    ]
    architecture = (values.get("architectures") or [HEADLESS[family]])[0]
    if ARCHITECTURES.get(architecture, ("", ()))[0] != family:
        names = [name for name, (of, _) in ARCHITECTURES.items() if of == family]
        problems.append(f"architectures: found {architecture!r}, supported are {names}")
    fields: dict[str, Any] = dict(DEFAULTS[family])
    names = GPT2_FIELDS if family == "gpt2" else ENCODER_FIELDS
    fields |= {ours: values[theirs] for ours, theirs in names.items() if theirs in values}
    activation = values.get("activation_function" if family == "gpt2" else "hidden_act")
    if activation in ACTIVATIONS:
        fields["hidden_act"] = ACTIVATIONS[activation]
    elif activation is not None:
        problems.append(f"hidden_act: found {activation!r}, supported are {sorted(ACTIVATIONS)}")
    if family == "gpt2":
        width = fields.get("hidden_size", 768)
        fields["intermediate_size"] = values.get("n_inner") or 4 * width
    if values.get("pad_token_id") is not None and family != "gpt2":
        fields["pad_token_id"] = values["pad_token_id"]
    labels = values.get("id2label")
    fields["num_labels"] = len(labels) if labels else values.get("num_labels", 2)
    wrong = [
        f"{name}: found {value!r}, expected a number"
        for name, value in fields.items()
        if name != "hidden_act" and (isinstance(value, bool) or not isinstance(value, int | float))
    ]
    if not wrong:
        heads = ARCHITECTURES.get(architecture, ("", ()))[1]
        cfg = ModelConfig(family=family, heads=heads, **fields)
        problems += cfg.problems()
        if not problems:
            return cfg
    raise ConvertError(f"{where} describes no supported model:\n  " + "\n  ".join(problems + wrong))


def architecture_of(cfg: ModelConfig) -> str:
    """The Hugging Face class of a model.

    Raises:
        ConvertError: if no class has these heads.
    """
    for name, (family, heads) in ARCHITECTURES.items():
        if family == cfg.family and set(heads) == set(cfg.heads):
            return name
    if not cfg.heads:
        return HEADLESS[cfg.family]
    known = [list(heads) for family, heads in ARCHITECTURES.values() if family == cfg.family]
    raise ConvertError(
        f"no Hugging Face class has the heads {list(cfg.heads)}; for {cfg.family} there are {known}"
    )


def to_hf(cfg: ModelConfig, *, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The values of the config.json of a model.

    Args:
        cfg: sizes and constants.
        base: values of another config.json, whose other entries (label names, token ids, task
            settings) are carried over.
    """
    values = dict(base or {})
    values |= {"model_type": cfg.family, "architectures": [architecture_of(cfg)]}
    names = GPT2_FIELDS if cfg.is_causal else ENCODER_FIELDS
    values |= {theirs: getattr(cfg, ours) for ours, theirs in names.items()}
    if cfg.is_causal:
        values |= {
            "activation_function": _activation(cfg, values.get("activation_function")),
            "embd_pdrop": cfg.hidden_dropout_prob,
            "n_ctx": cfg.max_position_embeddings,
            "n_inner": cfg.intermediate_size,
        }
        # The defaults of these point beyond a small vocabulary.
        for name in ("bos_token_id", "eos_token_id"):
            values.setdefault(name, min(50256, cfg.vocab_size - 1))
        return values
    values |= {
        "hidden_act": _activation(cfg, values.get("hidden_act")),
        "pad_token_id": cfg.pad_token_id,
    }
    if "classifier" in cfg.heads and len(values.get("id2label") or ()) != cfg.num_labels:
        values["id2label"] = {str(i): f"LABEL_{i}" for i in range(cfg.num_labels)}
        values["label2id"] = {f"LABEL_{i}": i for i in range(cfg.num_labels)}
    return values


def _activation(cfg: ModelConfig, before: Any) -> str:
    """The name that the source's file had, where it means the same."""
    return before if ACTIVATIONS.get(before) == cfg.hidden_act else cfg.hidden_act
