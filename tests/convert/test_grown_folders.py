"""Folders that `b2b grow` writes, as transformers reads them: every tensor, and equal logits."""

import json

import pytest
import reference
from outputs import assert_close
from reference import transformers

import b2b_jax as b2b
from b2b_jax.cli import main

AUTO = {
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "RobertaForMaskedLM": "AutoModelForMaskedLM",
    "GPT2LMHeadModel": "AutoModelForCausalLM",
}
WIDE = "hidden_size=48,num_attention_heads=6,intermediate_size=80"


@pytest.fixture(params=AUTO)
def source(request, tmp_path):
    return reference.folder(tmp_path / "small", request.param)


def grow(source, *words: str):
    target = source.parent / "large"
    assert main(["grow", str(source), str(target), "--to", *words]) == 0
    return target


def theirs(folder, fields: dict) -> dict:
    """Outputs of the class that a user asks for; every tensor must have found its place."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    auto = getattr(transformers, AUTO[name])
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == name
    assert not any(info.values()), info
    return reference.theirs(model.eval(), fields)


def compare(folder) -> tuple[dict, dict]:
    """A batch and their outputs for it, which ours must equal."""
    cfg, params = b2b.load(folder)
    fields = reference.batch(cfg)
    outputs = theirs(folder, fields)
    found = {"logits": b2b.build_model(cfg).apply(params, **fields)}
    assert_close(found, outputs, fields["attention_mask"])
    return fields, outputs


def test_twice_the_width_keeps_the_logits(source):
    fields, outputs = compare(grow(source, WIDE, "--method", "fpi"))
    assert_close(outputs, theirs(source, fields), fields["attention_mask"])


def test_wider_and_deeper(source):
    target = grow(source, f"{WIDE},num_hidden_layers=5", "--method", "aki")
    compare(target)
    assert b2b.load(target)[0].num_hidden_layers == 5


def test_shards(source):
    target = grow(source, WIDE, "--method", "fpi", "--shard-size", "40KB")
    assert len(list(target.glob("model-*.safetensors"))) > 2
    compare(target)
