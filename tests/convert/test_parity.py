"""Every supported class of transformers: equal outputs and gradients, bit-identical files."""

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
from b2b_jax.tree import flatten


@pytest.fixture(scope="module", params=CLASSES)
def case(request, tmp_path_factory):
    """A folder written by transformers, and its model there and here."""
    folder = reference.folder(tmp_path_factory.mktemp(request.param) / "model", request.param)
    theirs = getattr(transformers, request.param).from_pretrained(folder).eval()
    return request.param, folder, theirs, *b2b.load(folder)


def test_outputs(case):
    _, _, theirs, cfg, params = case
    fields = reference.batch(cfg)
    found = ours(b2b.build_model(cfg), params, fields)
    assert_close(found, reference.theirs(theirs, fields), fields["attention_mask"])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("BertForMaskedLM", {"hidden_act": "gelu_new", "type_vocab_size": 7}),
        ("BertForMaskedLM", {"hidden_act": "relu", "layer_norm_eps": 0.05}),
        ("BertForMaskedLM", {"hidden_act": "gelu_fast", "hidden_size": 15}),
        ("GPT2LMHeadModel", {"activation_function": "gelu", "layer_norm_epsilon": 0.05}),
        ("GPT2LMHeadModel", {"n_inner": None}),
    ],
)
def test_outputs_with_other_constants(tmp_path, name, changes):
    cfg, params = b2b.load(reference.folder(tmp_path / "model", name, **changes))
    fields = reference.batch(cfg)
    expected = reference.theirs(reference.build(name, **changes), fields)
    assert_close(ours(b2b.build_model(cfg), params, fields), expected, fields["attention_mask"])


def test_gradients(case):
    _, _, theirs, cfg, params = case
    fields, model = reference.batch(cfg), b2b.build_model(cfg)
    # Random weights of every output, so that no gradient vanishes by symmetry.
    shapes = {k: v.shape for k, v in ours(model, params, fields).items()}
    rng = np.random.default_rng(1)
    weights = {k: rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}
    seen = fields["attention_mask"][..., None]
    weights = {k: w * seen if w.ndim == 3 else w for k, w in weights.items()}

    def loss(p):
        outputs = ours(model, p, fields)
        return sum((outputs[k] * w).sum() for k, w in weights.items())

    found = params_to_hf(jax.grad(loss)(jax.tree.map(jnp.asarray, params)), cfg)
    theirs.zero_grad()
    outputs = reference.theirs(theirs, fields, grad=True)
    terms = [(outputs[k] * torch.from_numpy(w)).sum() for k, w in weights.items()]
    torch.stack(terms).sum().backward()
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    # The token table is the decoder too: ours has one gradient, theirs shares the parameter.
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        np.testing.assert_allclose(
            found[name], gradient.numpy(), atol=1e-3 * scale + 1e-5, err_msg=name
        )


def test_there_and_back_is_bit_identical(case, tmp_path):
    name, folder, _, cfg, params = case
    b2b.save(tmp_path / "back", cfg, params)
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        np.testing.assert_array_equal(after[key], tensor, err_msg=key)
    cfg_again, params_again = b2b.load(tmp_path / "back")
    assert cfg_again == cfg
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(flatten(params_again)[path], leaf, err_msg=path)
    model, info = getattr(transformers, name).from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.architectures == [name]


def test_half_precision_files_keep_their_bits(tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        model = reference.build("BertForMaskedLM").to(dtype)
        model.save_pretrained(tmp_path / "half")
        cfg, params = b2b.load(tmp_path / "half")
        assert {leaf.dtype.name for leaf in flatten(params).values()} == {str(dtype)[6:]}
        b2b.save(tmp_path / "back", cfg, params)
        again = transformers.BertForMaskedLM.from_pretrained(tmp_path / "back", dtype=dtype)
        for key, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], tensor), key


def test_pytorch_files(tmp_path):
    folder = reference.folder(tmp_path / "model", "GPT2LMHeadModel")
    cfg, expected = b2b.load(folder)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    found_cfg, params = b2b.load(folder)
    assert found_cfg == cfg
    for path, leaf in flatten(expected).items():
        np.testing.assert_array_equal(flatten(params)[path], leaf, err_msg=path)
