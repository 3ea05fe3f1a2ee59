"""Small Hugging Face folders made without PyTorch."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

import b2b_jax as b2b
from b2b_jax.models import ModelConfig
from b2b_jax.tree import flatten, unflatten

WORDS = "the a layer model weight copies reads grows and number".split()
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def config(family: str = "bert", **changes) -> ModelConfig:
    fields = {
        "vocab_size": 40,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 36,
        "max_position_embeddings": 20,
    }
    if family == "gpt2":
        fields |= {"family": family, "heads": ("lm",), "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    if family == "roberta":
        fields |= {"family": family, "pad_token_id": 1, "type_vocab_size": 1}
    return ModelConfig(**(fields | changes))


def random_params(cfg: ModelConfig, dtype=np.float32) -> dict:
    rng = np.random.default_rng(0)
    flat = flatten(b2b.build_model(cfg).shapes)
    return unflatten(
        {
            path: (path.endswith("scale") + 0.2 * rng.normal(size=shape)).astype(dtype)
            for path, shape in flat.items()
        }
    )


def hf_folder(path: Path, cfg: ModelConfig | None = None) -> Path:
    """A folder with a model, a tokenizer and label names, as a user may have it."""
    cfg = cfg or config()
    b2b.save(path, cfg, random_params(cfg))
    vocabulary = {word: i for i, word in enumerate((*SPECIALS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(path / "tokenizer.json"))
    values = json.loads((path / "config.json").read_text())
    values["custom_setting"] = {"kept": True}
    (path / "config.json").write_text(json.dumps(values))
    return path
