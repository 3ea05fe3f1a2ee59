"""grow, verify, convert and inspect on Hugging Face folders, as a user runs them."""

import json

import jax
import numpy as np
import pytest
from folders import config, hf_folder, random_params

import b2b_jax as b2b
from b2b_jax.cli import main
from b2b_jax.tree import flatten

WIDE = "hidden_size=48,num_attention_heads=6,intermediate_size=72"


@pytest.fixture
def source(tmp_path):
    return hf_folder(tmp_path / "small")


def assert_equal(found, expected):
    assert flatten(found).keys() == flatten(expected).keys()
    for path, leaf in flatten(expected).items():
        np.testing.assert_array_equal(flatten(found)[path], leaf, err_msg=path)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_a_grown_folder_holds_what_grow_makes(tmp_path, family, capsys):
    source = hf_folder(tmp_path / "small", config(family))
    words = ["grow", str(source), str(tmp_path / "large"), "--method", "aki"]
    words += ["--to", f"{WIDE},num_hidden_layers=5", "--shard-size", "20KB"]
    assert main(words) == 0
    small, params = b2b.load(source)
    large, grown = b2b.load(tmp_path / "large")
    assert (large.hidden_size, large.num_hidden_layers) == (48, 5)
    plan = b2b.GrowthPlan.from_json((tmp_path / "large" / "growth_plan.json").read_text())
    assert plan == b2b.plan_growth(small, large, method="aki")
    assert_equal(grown, b2b.grow(params, plan))
    index = json.loads((tmp_path / "large" / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    sizes = [(tmp_path / "large" / shard).stat().st_size for shard in shards]
    assert index["metadata"]["total_size"] <= sum(sizes)
    values = json.loads((tmp_path / "large" / "config.json").read_text())
    assert values["custom_setting"] == {"kept": True}
    tokenizer = (tmp_path / "large" / "tokenizer.json").read_bytes()
    assert tokenizer == (source / "tokenizer.json").read_bytes()
    card = (tmp_path / "large" / "README.md").read_text()
    assert card.startswith("---\nbase_model: small\n") and "layers/mlp/up/kernel" in card
    capsys.readouterr()
    assert main(words) == 0
    assert "already; nothing to do" in capsys.readouterr().out


def test_a_plan_is_replayed_bit_for_bit(source, tmp_path, capsys):
    first, again = tmp_path / "first", tmp_path / "again"
    options = ["--method", "direct_copy", "--mapping", "uniform", "--seed", "5"]
    assert main(["grow", str(source), str(first), "--to", WIDE, *options]) == 0
    assert main(["grow", str(source), str(again), "--plan", str(first / "growth_plan.json")]) == 0
    assert_equal(b2b.load(again)[1], b2b.load(first)[1])
    other = hf_folder(tmp_path / "other", config(num_hidden_layers=3))
    words = ["grow", str(other), str(tmp_path / "x"), "--plan", str(first / "growth_plan.json")]
    assert main(words) == 1
    assert "grows another model than" in capsys.readouterr().err


def test_verify_tells_exact_growth_from_inexact(source, tmp_path, capsys):
    text = tmp_path / "sample.txt"
    text.write_text("the model grows and the layer copies a weight " * 20)
    exact, uneven = tmp_path / "exact", tmp_path / "uneven"
    assert main(["grow", str(source), str(exact), "--to", WIDE, "--method", "fpi"]) == 0
    sizes = "hidden_size=40,num_attention_heads=5"
    assert main(["grow", str(source), str(uneven), "--to", sizes, "--method", "fpi"]) == 0
    capsys.readouterr()
    words = ["verify", str(source), str(exact), "--text", str(text)]
    assert main([*words, "--require-exact", "1e-4"]) == 0
    output = capsys.readouterr().out
    assert "the plan predicts: exact" in output and "within the required 0.0001" in output
    words[2] = str(uneven)
    assert main(words) == 0
    assert main([*words, "--require-exact", "1e-4"]) == 1
    output = capsys.readouterr().out
    assert "shifts the statistics" in output and "above the required" in output
    assert "layer 1" in output


def test_verify_compares_kinds_of_folders(source, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["convert", str(source), str(run)]) == 0
    assert main(["verify", str(source), str(run), "--require-exact", "0"]) == 0
    assert main(["verify", str(run), str(source), "--require-exact", "0"]) == 0
    assert "random tokens: loss" in capsys.readouterr().out


def test_convert_there_and_back(source, tmp_path):
    run, back = tmp_path / "run", tmp_path / "back"
    assert main(["convert", str(source), str(run)]) == 0
    assert main(["convert", str(run), str(back)]) == 0
    for name in ("model.safetensors", "tokenizer.json"):
        assert (back / name).read_bytes() == (source / name).read_bytes()
    assert json.loads((back / "config.json").read_text())["custom_setting"] == {"kept": True}
    cfg, params = b2b.load(run)
    assert cfg == b2b.load(source)[0]
    assert_equal(params, b2b.load(source)[1])


def test_growth_of_a_converted_folder_equals_growth_of_its_source(source, tmp_path):
    run = tmp_path / "run"
    assert main(["convert", str(source), str(run)]) == 0
    for folder in (source, run):
        assert main(["grow", str(folder), f"{folder}-large", "--to", WIDE]) == 0
    assert_equal(b2b.load(f"{run}-large")[1], b2b.load(f"{source}-large")[1])
    assert not (tmp_path / "run-large" / "config.json").exists()


def test_inspect_shows_config_axes_and_lineage(source, tmp_path, capsys):
    assert main(["grow", str(source), str(tmp_path / "large"), "--to", WIDE]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "large")]) == 0
    output = capsys.readouterr().out
    for part in (
        "hidden_size                   48",
        "kernel: layers | embed -> heads, head_dim",
        "parameters",
        f"source: {source}",
        "grown by aki",
    ):
        assert part in output, part


def test_half_precision_growth_keeps_the_dtype(tmp_path):
    cfg = config()
    b2b.save(tmp_path / "small", cfg, random_params(cfg, np.float16))
    assert main(["grow", str(tmp_path / "small"), str(tmp_path / "large"), "--to", WIDE]) == 0
    _, params = b2b.load(tmp_path / "large")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float16")}
