"""`b2b plot attention`: pictures and numbers of two folders, and messages for what cannot be."""

import csv
import json
import shutil

import jax
import pytest
import tiny
from folders import config, hf_folder
from runs import tiny_run

import b2b_jax as b2b
from b2b_jax.cli import main
from b2b_jax.data.prepare import prepare
from b2b_jax.train.saved import save_model

SIZES = "hidden_size=48,num_attention_heads=6,intermediate_size=72,num_hidden_layers=3"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A Hugging Face folder, what FPI made of it, and a text."""
    folder = tmp_path_factory.mktemp("attention")
    hf_folder(folder / "small")
    words = ["grow", str(folder / "small"), str(folder / "large"), "--to", SIZES]
    assert main([*words, "--method", "fpi"]) == 0
    (folder / "text.txt").write_text("the layer reads a weight and copies the number " * 12)
    return folder


def hf_params(cfg, seed):
    return b2b.build_model(cfg).init(jax.random.key(seed))


def plot(folder, *words, second="large"):
    text = ("--text", str(folder / "text.txt"))
    return main(["plot", "attention", str(folder / "small"), str(folder / second), *text, *words])


def test_pictures_and_similarities_of_hugging_face_folders(pair, capsys):
    assert (
        plot(pair, "--tokens", "9", "--heads", "0,4", "--layers", "2") == 0
    )  # the source has 0 only
    output = capsys.readouterr().out
    assert "large: grown by fpi" in output and "other weights" not in output
    (line,) = [line for line in output.splitlines() if line.strip().startswith("layer 1")]
    assert line.split()[2:] == ["1.0000"] * 4
    out = pair / "large_attention"
    names = {"source.png", "grown.png", "similarity.csv"}
    assert {path.name for path in out.iterdir()} == names
    assert (out / "grown.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((out / "similarity.csv").read_text().splitlines()))
    assert len(rows) == 3 * 6
    kept = [float(row["similarity"]) for row in rows if int(row["layer"]) < 2]
    assert min(kept) > 1 - 1e-5


def test_an_unrelated_model_and_a_part_of_its_heads(pair, capsys):
    b2b.save(pair / "other", config(), hf_params(config(), seed=1))
    words = ("--out", str(pair / "out"), "--layers", "1", "--heads", "0,2")
    assert plot(pair, *words, second="other") == 0
    output = capsys.readouterr().out
    assert "no plan; donors unknown" in output and "heads without donor to closest" in output
    assert "to twin" not in output and (pair / "out" / "grown.png").exists()


def test_a_plan_of_other_models_says_nothing_of_donors(pair, capsys):
    b2b.save(pair / "third", config(), hf_params(config(), seed=2))
    shutil.copy(pair / "large" / "growth_plan.json", pair / "third")
    assert plot(pair, "--out", str(pair / "out3"), second="third") == 0
    assert "its growth plan is of other models; donors unknown" in capsys.readouterr().out


def test_everything_that_does_not_fit_is_said_at_once(pair, capsys):
    cfg = config("gpt2", vocab_size=41)
    b2b.save(pair / "gpt2", cfg, hf_params(cfg, seed=0))
    assert plot(pair, "--layers", "0,7", "--heads", "9", "--tokens", "2", second="gpt2") == 1
    error = capsys.readouterr().err
    for part in (
        "family: bert in the first, gpt2 in the second",
        "vocab_size: 40 in the first, 41 in the second",
        "--layers: found [7], expected some of 0 to 1",
        "--heads: found [9], expected some of 0 to 2",
        "--tokens: found 2",
    ):
        assert part in error
    assert "Traceback" not in error and not (pair / "gpt2_attention").exists()


def test_a_grown_vocabulary_still_reads_the_sources_text(pair):
    words = ["grow", str(pair / "small"), str(pair / "words"), "--to", "vocab_size=48"]
    assert main([*words, "--method", "fpi"]) == 0
    assert plot(pair, second="words") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["small"], "found 1 folders (small), expected two"),
        (["small", "large", "large"], "found 3 folders"),
        (["nothing", "large"], "nothing: no such folder"),
        (["small", "large"], "only a run of b2b train has held-out text"),
        (["small", "large", "--text", "nothing.txt"], "nothing.txt"),
    ],
)
def test_bad_words_end_in_a_message(pair, words, message, capsys, monkeypatch):
    monkeypatch.chdir(pair)
    assert main(["plot", "attention", *words]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_run_called_attention_is_a_path(pair, capsys, monkeypatch):
    monkeypatch.chdir(pair)
    assert main(["plot", "./attention"]) == 1
    assert "expected two" not in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["plot", "attention", "small", "large", "--layers", "one"])
    assert "expected numbers such as 0,1,2" in capsys.readouterr().err


def test_a_run_is_read_on_its_heldout_text_and_a_changed_source_is_noticed(tmp_path, capsys):
    run = tiny_run(tmp_path)
    cfg, prepared = run.model, prepare(run.data)
    large = cfg.replace(hidden_size=24, num_attention_heads=3)
    plan = b2b.plan_growth(cfg, large, method="aki")
    params = hf_params(cfg, seed=0)
    save_model(tmp_path / "small", cfg, params, meta={"data": {"path": str(prepared.path)}})
    lineage = {"growth_plan": json.loads(plan.to_json()), "source_fingerprint": "another"}
    meta = {"lineage": lineage, "progress": {}}
    save_model(tmp_path / "large", large, tiny.grow_jitted(params, plan), meta=meta)
    words = ["plot", "attention", str(tmp_path / "small"), str(tmp_path / "large")]
    assert main([*words, "--tokens", "99"]) == 0  # no more than there are positions
    output = capsys.readouterr().out
    assert "rows on held-out text:" in output
    assert "grown by aki, then trained for 0 steps" in output and "other weights" in output
    shutil.rmtree(prepared.path)
    assert main(words) == 1
    assert "its held-out text is gone" in capsys.readouterr().err
