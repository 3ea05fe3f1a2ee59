"""Folders in golden/ that transformers wrote: equal outputs and bit-identical files, no PyTorch."""

import json
import shutil

import numpy as np
import pytest
from make_golden import GOLDEN, INPUTS, MODELS
from ml_dtypes import bfloat16
from outputs import assert_close, ours
from safetensors.numpy import load_file, save_file

import b2b_jax as b2b
from b2b_jax.convert import open_folder
from b2b_jax.tree import flatten

BERT, WEIGHTS = GOLDEN / "BertForPreTraining", "model.safetensors"


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_outputs(name):
    expected = dict(np.load(GOLDEN / name / "expected.npz"))
    fields = {field: expected.pop(field) for field in INPUTS if field in expected}
    assert not fields["attention_mask"].all()
    cfg, params = b2b.load(GOLDEN / name)
    assert_close(ours(b2b.build_model(cfg), params, fields), expected, fields["attention_mask"])


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_bit_identical(name, tmp_path):
    folder = open_folder(GOLDEN / name)
    b2b.save(tmp_path, folder.config, folder.params())
    assert_equal(load_file(tmp_path / WEIGHTS), load_file(GOLDEN / name / WEIGHTS))
    values = json.loads((tmp_path / "config.json").read_text())
    changed = {key for key, value in folder.values.items() if values.get(key, value) != value}
    assert changed <= {"bos_token_id", "eos_token_id"}  # these mean nothing to a model of ours
    assert b2b.load(tmp_path)[0] == folder.config


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
def test_half_precision_files_keep_their_bits(dtype, tmp_path):
    half = {name: tensor.astype(dtype) for name, tensor in load_file(BERT / WEIGHTS).items()}
    shutil.copytree(BERT, tmp_path / "half")
    save_file(half, tmp_path / "half" / WEIGHTS)
    b2b.save(tmp_path / "back", *b2b.load(tmp_path / "half"))
    assert_equal(load_file(tmp_path / "back" / WEIGHTS), half)


def test_old_names_prefixes_and_buffers(tmp_path):
    """As files of 2019 have them: gamma and beta, no prefix or a doubled tie, position_ids."""
    tensors, old = load_file(BERT / WEIGHTS), {}
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old[name.replace("LayerNorm.bias", "LayerNorm.beta").removeprefix("bert.")] = tensor
    old["bert.embeddings.position_ids"] = np.arange(18)[None]
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = old.pop("cls.predictions.bias")
    shutil.copytree(BERT, tmp_path / "old")
    save_file(old, tmp_path / "old" / WEIGHTS)
    folder = open_folder(tmp_path / "old")
    assert_equal(flatten(folder.params()), flatten(b2b.load(BERT)[1]))
    assert "position_ids" in "".join(folder.notes())
