"""Folders written by transformers with random weights, for the tests of conversion."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    # No two of these are equal, so that a swapped or transposed axis cannot go unseen.
    "vocab_size": 67,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 18,
}
BERT = SIZES | {"type_vocab_size": 2, "hidden_act": "gelu"}
ROBERTA = SIZES | {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
GPT2 = {
    "vocab_size": 67,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "n_inner": 40,
    "n_positions": 18,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CLASSES = {
    "BertModel": BERT,
    "BertForMaskedLM": BERT,
    "BertForPreTraining": BERT,
    "BertForSequenceClassification": BERT | {"num_labels": 5},
    "BertForQuestionAnswering": BERT,
    "RobertaModel": ROBERTA,
    "RobertaForMaskedLM": ROBERTA,
    "GPT2Model": GPT2,
    "GPT2LMHeadModel": GPT2,
}


def build(name: str, **changes):
    """A model of a class with random values in every parameter, biases and norms too."""
    config_class = {"B": "BertConfig", "R": "RobertaConfig", "G": "GPT2Config"}[name[0]]
    config = getattr(transformers, config_class)(**(CLASSES[name] | changes))
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            centre = 1.0 if ("norm" in path.lower() or "ln_" in path) and "weight" in path else 0.0
            parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
    return model


def folder(path: Path, name: str, **changes) -> Path:
    """A folder as transformers itself writes it."""
    build(name, **changes).save_pretrained(path)
    return path


def batch(cfg, rows: int = 3, length: int = 11) -> dict:
    """Token ids and a mask with padding; segment ids where there are several."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, cfg.vocab_size, (rows, length)).astype(np.int32)
    mask = np.ones((rows, length), np.int32)
    mask[0, -3:] = 0
    ids[0, -3:] = cfg.pad_token_id
    fields = {"input_ids": ids, "attention_mask": mask}
    if not cfg.is_causal:
        types = rng.integers(0, cfg.type_vocab_size, (rows, length))
        fields["token_type_ids"] = types.astype(np.int32)
    return fields


def theirs(model, fields: dict, *, grad: bool = False) -> dict:
    """Every output that matters, by the name that ours have."""
    tensors = {name: torch.from_numpy(field).long() for name, field in fields.items()}
    with torch.set_grad_enabled(grad):
        found = model(**tensors)
    names = {
        "logits": "class" if hasattr(model, "classifier") else "logits",
        "prediction_logits": "logits",
        "seq_relationship_logits": "nsp",
        "last_hidden_state": "hidden",
        "pooler_output": "pooled",
    }
    outputs = {
        ours: getattr(found, name)
        for name, ours in names.items()
        if getattr(found, name, None) is not None
    }
    if hasattr(found, "start_logits"):
        outputs["spans"] = torch.stack([found.start_logits, found.end_logits], dim=-1)
    return outputs
