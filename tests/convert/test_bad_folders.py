"""Every bad input ends in one message that says what is wrong, and writes nothing."""

import json
import pickle
import shutil
import sys

import pytest
from folders import config, hf_folder
from safetensors.numpy import load_file, save_file

import b2b_jax as b2b
from b2b_jax.cli import main

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    return hf_folder(tmp_path / "model")


def change_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))


def refused(capsys, folder, *words: str) -> str:
    """Growing must fail with a message, leaving no trace beside the source."""
    target = folder.parent / "out"
    before = sorted(folder.parent.iterdir())
    to = words or ("--to", "hidden_size=48,num_attention_heads=6,intermediate_size=72")
    assert main(["grow", str(folder), str(target), *to]) == 1
    assert sorted(folder.parent.iterdir()) == before
    error = capsys.readouterr().err
    assert error.startswith("b2b: ") and "Traceback" not in error
    return error


def test_truncated_weights(folder, capsys):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    assert "truncated" in refused(capsys, folder)


def test_an_index_that_names_a_missing_shard(folder, capsys):
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "../../etc/passwd"}}
    (folder / (WEIGHTS + ".index.json")).write_text(json.dumps(index))
    error = refused(capsys, folder)
    assert "model-00001-of-00002.safetensors" in error and "not there" in error


def test_no_weights_and_no_json(folder, capsys):
    (folder / WEIGHTS).unlink()
    assert "holds no weights" in refused(capsys, folder)


def test_all_misfits_in_one_error(folder, capsys):
    tensors = load_file(folder / WEIGHTS)
    tensors["bert.surprise"] = tensors.pop("bert.encoder.layer.1.output.dense.bias")
    name = "bert.embeddings.word_embeddings.weight"
    tensors[name] = tensors[name][:-1].copy()
    save_file(tensors, folder / WEIGHTS)
    error = refused(capsys, folder)
    for part in (
        "missing:\n  bert.encoder.layer.1.output.dense.bias",
        "unexpected:\n  bert.surprise",
        f"{name}: found (39, 24), expected (40, 24)",
    ):
        assert part in error


def test_a_config_that_contradicts_the_weights(folder, capsys):
    change_config(folder, intermediate_size=48)
    assert "intermediate.dense.weight: found (36, 24), expected (48, 24)" in refused(capsys, folder)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "t5"}, ["'t5' is not supported", "'bert', 'gpt2', 'roberta'"]),
        ({"architectures": ["BertForTokenClassification"]}, ["BertForPreTraining"]),
        ({"position_embedding_type": "relative_key"}, ["only 'absolute' is supported"]),
        ({"hidden_size": "wide"}, ["hidden_size: found 'wide', expected a number"]),
        ({"hidden_act": "swish"}, ["hidden_act: found 'swish'"]),
        ({"num_attention_heads": 5}, ["does not divide hidden_size (24)"]),
    ],
)
def test_configs_that_are_not_supported(folder, capsys, changes, parts):
    change_config(folder, **changes)
    error = refused(capsys, folder)
    assert all(part in error for part in parts), error


def test_a_target_that_is_smaller_or_has_other_heads(folder, capsys):
    error = refused(
        capsys, folder, "--to", "hidden_size=40,num_attention_heads=5,num_hidden_layers=1"
    )
    assert "layers shrinks: 2 -> 1" in error
    error = refused(capsys, folder, "--to", "hidden_size=48")
    assert "head_dim: 8 -> 16" in error and "num_attention_heads to 6" in error


def test_a_target_folder_that_holds_something(folder, capsys):
    target = folder.parent / "out"
    target.mkdir()
    (target / "thesis.txt").write_text("all of it")
    words = ["grow", str(folder), str(target), "--to", "num_hidden_layers=3"]
    assert main(words) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert (target / "thesis.txt").read_text() == "all of it"
    assert main([*words, "--overwrite"]) == 1  # it is no model that would be replaced
    assert "holds no model" in capsys.readouterr().err
    assert (target / "thesis.txt").exists()
    (target / "thesis.txt").rename(folder.parent / "thesis.txt")
    assert main(words) == 0
    deeper = ["grow", str(folder), str(target), "--to", "num_hidden_layers=4"]
    assert main(deeper) == 1
    assert main([*deeper, "--overwrite"]) == 0
    assert b2b.load(target)[0].num_hidden_layers == 4
    deeper[1] = str(target)
    assert main([*deeper, "--overwrite"]) == 1
    assert "is or holds the source" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_and_says_so(folder, capsys, monkeypatch):
    import b2b_jax.convert.writing as writing

    def full(file, entries, arrays):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(writing, "write_safetensors", full)
    assert "No space left on device" in refused(capsys, folder)


def test_a_tokenizer_beyond_the_embedding(folder, capsys):
    small = config(vocab_size=9)
    other = hf_folder(folder.parent / "small", small)
    assert "token ids up to 14, but the embedding has 9 rows" in refused(capsys, other)
    shutil.rmtree(other)


def test_an_untied_decoder(folder, capsys):
    tensors = load_file(folder / WEIGHTS)
    tensors["cls.predictions.decoder.weight"] = (
        2 * tensors["bert.embeddings.word_embeddings.weight"]
    )
    save_file(tensors, folder / WEIGHTS)
    assert "an untied decoder is not supported" in refused(capsys, folder)


class Malicious:
    def __reduce__(self):
        return print, ("this must never run",)


def test_a_pickle_that_wants_to_run_code(folder, capsys):
    torch = pytest.importorskip("torch")
    (folder / WEIGHTS).unlink()
    torch.save({"bert.x": Malicious()}, folder / "pytorch_model.bin")
    error = refused(capsys, folder)
    assert "refused" in error and "could run code" in error
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"bert.x": Malicious()}))
    assert "pytorch_model.bin" in refused(capsys, folder)


def test_a_pytorch_file_without_pytorch(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    error = refused(capsys, folder)
    assert "pytorch_model.bin: reading PyTorch's own format needs PyTorch" in error


def test_a_missing_head_is_made_only_when_asked_for(folder, capsys, tmp_path):
    cfg = config(heads=("pooler",))
    other = hf_folder(tmp_path / "headless", cfg)
    wanted = ("--to", "num_hidden_layers=3", "--heads", "mlm")
    target = tmp_path / "grown"
    assert main(["grow", str(other), str(target), *wanted]) == 1
    error = capsys.readouterr().err
    assert "cls.predictions.transform.dense.weight" in error and "--init-missing head" in error
    assert main(["grow", str(other), str(target), *wanted, "--init-missing", "head"]) == 0
    output = capsys.readouterr().out
    assert "made fresh, missing in the file: mlm/decoder/bias" in output
    assert "left out, not among the heads asked for: pooler.dense.bias" in output
    grown, params = b2b.load(target)
    assert grown.heads == ("mlm",) and params["mlm"]["transform"]["kernel"].std() > 0
