"""Conversion at the sizes that are in use: base models of 85 to 125 M random parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from outputs import assert_close, ours
from reference import CLASSES, torch, transformers
from safetensors.numpy import load_file

import b2b_jax as b2b
from b2b_jax.convert import params_to_hf

pytestmark = pytest.mark.slow
ROBERTA = {
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_gradients_and_bits(name, tmp_path):
    kind = {"B": "BertConfig", "R": "RobertaConfig", "G": "GPT2Config"}[name[0]]
    config = getattr(transformers, kind)(**(ROBERTA if name[0] == "R" else {}))
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(config).eval()
    with torch.no_grad():  # fresh biases are zero and fresh norms one
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "model")
    cfg, params = b2b.load(tmp_path / "model")
    fields, model = reference.batch(cfg, rows=2, length=48), b2b.build_model(cfg)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda p: ours(model, p, fields))(params)
        expected = reference.theirs(theirs, fields, grad=True)
        plain = {key: value.detach().numpy() for key, value in expected.items()}
        assert_close(found, plain, fields["attention_mask"])

        rng = np.random.default_rng(1)
        weights = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in plain.items()}
        seen = fields["attention_mask"][..., None]
        weights = {k: w * seen if w.ndim == 3 else w for k, w in weights.items()}
        loss = jax.jit(
            jax.grad(
                lambda p: sum((ours(model, p, fields)[k] * w).sum() for k, w in weights.items())
            )
        )
        gradients = params_to_hf(loss(jax.tree.map(jnp.asarray, params)), cfg)
    terms = [(expected[k] * torch.from_numpy(w)).sum() for k, w in weights.items()]
    torch.stack(terms).sum().backward()
    for path, parameter in theirs.named_parameters():
        if parameter.grad is None or path.endswith("key.bias"):  # whose gradient is zero
            continue
        error = np.linalg.norm(gradients[path] - parameter.grad.numpy())
        assert error < 1e-3 * parameter.grad.norm().item() + 1e-6, path

    b2b.save(tmp_path / "back", cfg, params)
    before = load_file(tmp_path / "model" / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        np.testing.assert_array_equal(after[key], tensor, err_msg=key)
