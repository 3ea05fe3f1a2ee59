"""`b2b grow` and `b2b verify` with the rules beyond the paper, as a user calls them."""

import json

import numpy as np
import pytest
import tiny

import b2b_jax as b2b
from b2b_jax.cli import main
from b2b_jax.growth import mean_pad_epsilon
from b2b_jax.train.saved import save_model


def run(capsys, *words) -> tuple[int, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same GPT-2 as a Hugging Face folder and as a b2b folder, a BERT, and a text."""
    root = tmp_path_factory.mktemp("grow_cli")
    gpt = tiny.config("gpt2", vocab_size=300, max_position_embeddings=32)
    bert = tiny.config(vocab_size=300, max_position_embeddings=32, heads=("mlm",))
    b2b.save(root / "gpt", gpt, tiny.random_params(gpt))
    save_model(root / "gpt_b2b", gpt, tiny.random_params(gpt), meta={})
    b2b.save(root / "bert", bert, tiny.random_params(bert))
    text = "The grown model reads the same words as its source did, one after the other. " * 40
    (root / "text.txt").write_text(text)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(text.lower().split()))]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + list("abcdefghij,.")
    (root / "bert" / "vocab.txt").write_text("\n".join(words))
    return root


@pytest.mark.parametrize("kind", ["gpt", "gpt_b2b"])
def test_mean_padding_from_the_command_line_is_exact(folders, kind, capsys, tmp_path):
    size = "hidden_size=20,num_attention_heads=4,num_hidden_layers=6"
    words = ["--to", size, "--method", "fpi", "--norm", "mean_pad", "--depth", "identity"]
    code, output = run(capsys, "grow", folders / kind, tmp_path / "big", *words)
    assert code == 0, output
    assert "exact: the grown model computes the source's function" in output
    assert "mean in new embed" in output
    cfg, _ = b2b.load(tmp_path / "big")
    assert cfg.layer_norm_eps == mean_pad_epsilon(1e-5, 15, 20)
    code, output = run(
        capsys, "verify", folders / kind, tmp_path / "big", "--require-exact", "1e-4"
    )
    assert code == 0, output
    assert "width alone: " in output and "width and depth: " in output
    assert "norms that add most" not in output


def test_unequal_shares_noise_and_maps(folders, capsys, tmp_path):
    size = "hidden_size=30,num_attention_heads=6,vocab_size=384,max_position_embeddings=50"
    words = ["--to", size, "--method", "fpi", "--split", "unequal", "--noise", "0.5"]
    words += ["--map", "positions=interpolate", "--map", f"vocab={','.join('7' * 84)}"]
    code, output = run(capsys, "grow", folders / "gpt", tmp_path / "big", *words)
    assert code == 0, output
    assert "positions renumbers or mixes" in output
    assert "of the source's peak rate, or train with --optimizer.rate_scale" in output
    plan = b2b.GrowthPlan.from_json((tmp_path / "big" / "growth_plan.json").read_text())
    assert (plan.split, plan.noise) == ("unequal", 0.5)
    _, small = b2b.load(folders / "gpt")
    _, large = b2b.load(tmp_path / "big")
    tiny.assert_trees_equal(large, b2b.grow(small, plan))
    table = np.asarray(large["embeddings"]["token"]["embedding"])
    np.testing.assert_array_equal(table[300:], np.tile(table[7], (84, 1)))
    card = (tmp_path / "big" / "README.md").read_text()
    assert "split: unequal" in card and "noise: 0.5" in card
    # The same plan again, from its file.
    again = ["grow", folders / "gpt", tmp_path / "again"]
    code, output = run(capsys, *again, "--plan", tmp_path / "big" / "growth_plan.json")
    assert code == 0, output
    tiny.assert_trees_equal(b2b.load(tmp_path / "again")[1], large)


@pytest.mark.slow
def test_calibrated_norms_tell_what_three_ways_cost(folders, capsys, tmp_path):
    size = "hidden_size=25,num_attention_heads=5,num_hidden_layers=5"
    words = ["--to", size, "--method", "fpi", "--norm", "calibrated", "--text"]
    words.append(folders / "text.txt")
    code, output = run(capsys, "grow", folders / "bert", tmp_path / "big", *words)
    assert code == 0, output
    gaps = {}
    for line in output.splitlines():
        for name in ("cyclic", "uniform", "calibrated"):
            if line.strip().removeprefix("grow").strip().startswith(f"{name} "):
                gaps[name] = float(line.rpartition("relative ")[2].split(",")[0])
    assert set(gaps) == {"cyclic", "uniform", "calibrated"}, output
    assert gaps["calibrated"] < min(gaps["cyclic"], gaps["uniform"])
    assert "width alone" in output
    plan = json.loads((tmp_path / "big" / "growth_plan.json").read_text())
    assert plan["norm"] == "calibrated"
    assert len(plan["norm_scales"]["layers/mlp_norm/scale"]) == 4
    code, output = run(
        capsys, "verify", folders / "bert", tmp_path / "big", "--text", folders / "text.txt"
    )
    assert code == 0, output
    assert "norms that add most to it, each by itself:" in output


def test_what_needs_text_says_so_of_a_b2b_folder_too(folders, capsys, tmp_path):
    words = ["--to", "hidden_size=25,num_attention_heads=5", "--norm", "calibrated"]
    code, output = run(capsys, "grow", folders / "gpt_b2b", tmp_path / "big", *words)
    assert code == 1
    assert "add --text FILE" in output


def test_a_plan_is_for_one_kind_of_model_and_says_everything(folders, capsys, tmp_path):
    words = ["--to", "hidden_size=30,num_attention_heads=6", "--method", "fpi", "--heads", "lm"]
    assert run(capsys, "grow", folders / "gpt", tmp_path / "one", *words)[0] == 0
    plan = tmp_path / "one" / "growth_plan.json"
    again = ["grow", folders / "gpt", tmp_path / "two", "--plan", plan]
    code, output = run(capsys, *again, "--noise", "0.5")
    assert code == 1 and "leave out --noise" in output
    stored = json.loads(plan.read_text())
    stored["source"]["heads"], stored["source"]["layer_norm_eps"] = [], 1e-6
    plan.write_text(json.dumps(stored))
    code, output = run(capsys, *again)
    assert code == 1
    assert "heads: the plan's source has [" in output or "heads: the plan's source has (" in output
    assert "layer_norm_eps: the plan's source has 1e-06, the folder 1e-05" in output
    plan.write_bytes(b"\xfd7zXZ")
    code, output = run(capsys, *again)
    assert code == 1 and "this is not a growth plan" in output
    assert not (tmp_path / "two").exists()


def test_verify_reads_the_heads_that_were_grown(folders, capsys, tmp_path):
    bert = tiny.config(heads=("mlm", "pooler", "nsp"), vocab_size=60)
    b2b.save(tmp_path / "small", bert, tiny.random_params(bert))
    words = ["--to", "hidden_size=30,num_attention_heads=6,num_hidden_layers=5"]
    words += ["--heads", "mlm", "--method", "fpi"]
    assert run(capsys, "grow", tmp_path / "small", tmp_path / "big", *words)[0] == 0
    code, output = run(capsys, "verify", tmp_path / "small", tmp_path / "big")
    assert code == 0, output
    assert "width alone: " in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--norm", "calibrated"], "--norm calibrated needs --text FILE"),
        (["--norm", "calibrated", "--method", "random"], "random copies nothing twice"),
        (["--norm", "mean_pad"], "'mean_pad' is for pre-norm models"),
        (["--noise", "-1"], "noise: found -1.0, expected at least 0"),
        (["--map", "positions"], "--map: found 'positions', expected AXIS=RULE"),
        (["--map", "colour=mean"], "there is no axis 'colour'; there are"),
        (["--map", "vocab=some"], "vocab: found 'some', expected one of"),
        (["--text", "nothing.txt"], "nothing.txt"),
        (["--norm", "calibrated", "--text", "BINARY"], "expected plain text in UTF-8"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_words_that_make_no_sense(folders, words, message, capsys, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xfd7zXZ\x00")
    words = [str(tmp_path / "binary") if word == "BINARY" else word for word in words]
    size = "hidden_size=25,num_attention_heads=5"
    code, output = run(capsys, "grow", folders / "bert", tmp_path / "big", "--to", size, *words)
    assert code == 1
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "big").exists()


def test_saving_replaces_a_model_and_nothing_else(tmp_path):
    cfg = tiny.config()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(b2b.ConvertError, match="holds no model"):
        b2b.save(tmp_path, cfg, tiny.random_params(cfg))
    assert (tmp_path / "thesis.txt").exists()
    for _ in range(2):
        b2b.save(tmp_path / "model", cfg, tiny.random_params(cfg))


def test_verify_needs_the_smaller_model_first(folders, capsys, tmp_path):
    large = tiny.wider(tiny.config("gpt2", vocab_size=300, max_position_embeddings=32))
    b2b.save(tmp_path / "large", large, tiny.random_params(large))
    code, output = run(capsys, "verify", tmp_path / "large", folders / "gpt")
    assert code == 1
    assert "embed: 30 in the first, 15 in the second" in output
