"""Logits against the reference implementation, for random weights in every leaf."""

import numpy as np
import pytest
import tiny

from b2b_jax.models import build_model
from b2b_jax.tree import flatten

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_act",
    "layer_norm_eps",
)


def bert_weights(cfg, params):
    flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    width = cfg.hidden_size
    found = {}

    def norm(name, path, layer=...):
        found[f"{name}.weight"] = flat[f"{path}/scale"][layer]
        found[f"{name}.bias"] = flat[f"{path}/bias"][layer]

    def dense(name, path, layer=..., rows=width):
        found[f"{name}.weight"] = flat[f"{path}/kernel"][layer].reshape(rows, -1).T
        found[f"{name}.bias"] = flat[f"{path}/bias"][layer].reshape(-1)

    for theirs, ours in (("word", "token"), ("position", "position")):
        found[f"bert.embeddings.{theirs}_embeddings.weight"] = flat[f"embeddings/{ours}/embedding"]
    types = flat["embeddings/token_type/embedding"]
    found["bert.embeddings.token_type_embeddings.weight"] = types
    norm("bert.embeddings.LayerNorm", "embeddings/norm")
    for layer in range(cfg.num_hidden_layers):
        name = f"bert.encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            dense(f"{name}.attention.self.{part}", f"layers/attention/{part}", layer)
        dense(f"{name}.attention.output.dense", "layers/attention/out", layer)
        norm(f"{name}.attention.output.LayerNorm", "layers/attention_norm", layer)
        dense(f"{name}.intermediate.dense", "layers/mlp/up", layer)
        dense(f"{name}.output.dense", "layers/mlp/down", layer, rows=cfg.intermediate_size)
        norm(f"{name}.output.LayerNorm", "layers/mlp_norm", layer)
    dense("cls.predictions.transform.dense", "mlm/transform")
    norm("cls.predictions.transform.LayerNorm", "mlm/norm")
    found["cls.predictions.bias"] = flat["mlm/decoder/bias"]
    found["cls.predictions.decoder.bias"] = flat["mlm/decoder/bias"]
    found["cls.predictions.decoder.weight"] = flat["embeddings/token/embedding"]
    if "nsp" in cfg.heads:
        dense("bert.pooler.dense", "pooler/dense")
        dense("cls.seq_relationship", "nsp/classifier")
    return found


def gpt2_weights(cfg, params):
    flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    width, found = cfg.hidden_size, {}
    found["transformer.wte.weight"] = flat["embeddings/token/embedding"]
    found["lm_head.weight"] = flat["embeddings/token/embedding"]
    found["transformer.wpe.weight"] = flat["embeddings/position/embedding"]
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        found[f"transformer.ln_f.{theirs}"] = flat[f"final_norm/{ours}"]
    for layer in range(cfg.num_hidden_layers):
        name = f"transformer.h.{layer}"
        for ours, theirs in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
            found[f"{name}.{theirs}.weight"] = flat[f"layers/{ours}/scale"][layer]
            found[f"{name}.{theirs}.bias"] = flat[f"layers/{ours}/bias"][layer]
        parts = [f"layers/attention/{part}" for part in ("query", "key", "value")]
        found[f"{name}.attn.c_attn.weight"] = np.concatenate(
            [flat[f"{part}/kernel"][layer].reshape(width, width) for part in parts], axis=1
        )
        found[f"{name}.attn.c_attn.bias"] = np.concatenate(
            [flat[f"{part}/bias"][layer].reshape(-1) for part in parts]
        )
        for ours, theirs in (
            ("attention/out", "attn.c_proj"),
            ("mlp/up", "mlp.c_fc"),
            ("mlp/down", "mlp.c_proj"),
        ):
            kernel = flat[f"layers/{ours}/kernel"][layer]
            found[f"{name}.{theirs}.weight"] = kernel.reshape(-1, kernel.shape[-1])
            found[f"{name}.{theirs}.bias"] = flat[f"layers/{ours}/bias"][layer]
    return found


def load(reference, weights):
    tensors = {name: torch.tensor(np.array(value)) for name, value in weights.items()}
    missing, unexpected = reference.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all("masked_bias" in name or "position_ids" in name for name in missing), missing
    return reference.eval()


def as_tensors(inputs):
    return {name: torch.tensor(np.array(value), dtype=torch.long) for name, value in inputs.items()}


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_bert_masked_lm(activation):
    cfg = tiny.config(heads=("mlm",), hidden_act=activation)
    params, inputs = tiny.random_params(cfg), tiny.batch(cfg)
    config = transformers.BertConfig(**{name: getattr(cfg, name) for name in SIZES})
    reference = load(transformers.BertForMaskedLM(config), bert_weights(cfg, params))
    with torch.no_grad():
        expected = reference(**as_tensors(inputs)).logits.numpy()
    found = np.asarray(build_model(cfg).apply(params, **inputs))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected).max() > 1


def test_bert_pre_training_heads():
    cfg = tiny.config(layer_norm_eps=1e-6)
    params, inputs = tiny.random_params(cfg), tiny.batch(cfg)
    config = transformers.BertConfig(**{name: getattr(cfg, name) for name in SIZES})
    reference = load(transformers.BertForPreTraining(config), bert_weights(cfg, params))
    with torch.no_grad():
        expected = reference(**as_tensors(inputs))
    found = tiny.outputs(cfg, params, inputs)
    np.testing.assert_allclose(found["logits"], expected.prediction_logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(found["nsp"], expected.seq_relationship_logits.numpy(), atol=1e-4)


def test_gpt2():
    cfg = tiny.config("gpt2")
    params, inputs = tiny.random_params(cfg), tiny.batch(cfg)
    config = transformers.GPT2Config(
        vocab_size=cfg.vocab_size,
        n_embd=cfg.hidden_size,
        n_layer=cfg.num_hidden_layers,
        n_head=cfg.num_attention_heads,
        n_inner=cfg.intermediate_size,
        n_positions=cfg.max_position_embeddings,
        activation_function=cfg.hidden_act,
        layer_norm_epsilon=cfg.layer_norm_eps,
        bos_token_id=0,
        eos_token_id=0,
    )
    reference = load(transformers.GPT2LMHeadModel(config), gpt2_weights(cfg, params))
    with torch.no_grad():
        expected = reference(**as_tensors(inputs)).logits.numpy()
    found = np.asarray(build_model(cfg).apply(params, **inputs))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected).max() > 1
