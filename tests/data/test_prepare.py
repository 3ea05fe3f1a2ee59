"""Preparation: the split, what is stored, and that a folder is whole or absent."""

import dataclasses
import hashlib
import json
import sys
from typing import Any

import numpy as np
import pytest
import texts
from tokenizers import Tokenizer

from b2b_jax.data import DataError, load_prepared, prepare

MODULE: Any = sys.modules["b2b_jax.data.prepare"]  # the package gives its function this name


def stored_documents(prepared, split):
    """The words of each stored document, read back from its tokens."""
    tokenizer = Tokenizer.from_file(str(prepared.path / "tokenizer.json"))
    stream = np.load(prepared.path / f"{split}.npy")
    ends = np.flatnonzero(stream == prepared.tokenizer.sep_id)
    starts = [0, *(ends[:-1] + 1)]
    return [tokenizer.decode(stream[a:b].tolist()) for a, b in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("tokenizer", ["wordpiece", "byte-bpe"])
def test_every_document_is_stored_once_in_one_split(tmp_path, tokenizer):
    documents = texts.two_paragraphs(80)
    found = prepare(texts.config(tmp_path, documents, tokenizer=tokenizer))
    train, heldout = (stored_documents(found, split) for split in ("train", "heldout"))
    assert len(heldout) in range(4, 33)  # 20 % of 80, five standard deviations either way
    expected = sorted(" ".join(text.split()) for text in documents)
    assert sorted(" ".join(text.split()) for text in train + heldout) == expected
    np.testing.assert_equal(found.train_tokens, len(np.load(found.path / "train.npy")))
    np.testing.assert_equal(found.heldout_tokens, len(np.load(found.path / "heldout.npy")))
    assert np.load(found.path / "train.npy").dtype == np.uint16


def test_adding_documents_moves_none_between_the_splits(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    small = stored_documents(prepare(texts.config(first, texts.two_paragraphs(60))), "heldout")
    large = stored_documents(prepare(texts.config(second, texts.two_paragraphs(90))), "heldout")
    assert set(small) < set(large)


def test_no_heldout_paragraph_occurs_in_training(tmp_path):
    shared = [texts.paragraph(10_000 + n) for n in range(3)]
    documents = [
        f"{texts.paragraph(n)}\n\n{shared[n % 3].upper() if n % 2 else shared[n % 3]}"
        for n in range(80)
    ]
    found = prepare(texts.config(tmp_path, documents))
    train, heldout = (" ".join(stored_documents(found, name)) for name in ("train", "heldout"))
    assert all(text in train for text in shared)
    assert not any(text in heldout for text in shared)
    assert any(texts.paragraph(n) in heldout for n in range(80))


def test_data_json_describes_what_is_stored(tmp_path):
    found = prepare(texts.config(tmp_path))
    record = json.loads((found.path / "data.json").read_text())
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((found.path / name).read_bytes()).hexdigest() == digest
    assert set(record["sha256"]) == {"train.npy", "heldout.npy", "tokenizer.json"}
    assert record["settings"]["heldout_percent"] == 20.0
    assert record["counts"]["train"]["tokens"] == found.train_tokens
    assert record["counts"]["train"]["documents"] + record["counts"]["heldout"]["documents"] == 80
    assert load_prepared(found.path) == found


def test_a_second_call_reads_no_text(tmp_path, monkeypatch):
    cfg = texts.config(tmp_path)
    first = prepare(cfg)

    def unreadable(config):
        raise AssertionError("text was read again")

    monkeypatch.setattr(MODULE, "documents", unreadable)
    assert prepare(cfg) == first


@pytest.mark.parametrize(
    "change", [{"vocab_size": 350}, {"heldout_percent": 30.0}, {"max_megabytes": 0.02}]
)
def test_other_settings_are_other_data(tmp_path, change):
    cfg = texts.config(tmp_path)
    first = prepare(cfg)
    second = prepare(dataclasses.replace(cfg, **change))
    assert first.path != second.path
    assert first.fingerprint != second.fingerprint


def test_an_edited_file_is_other_data(tmp_path):
    first = prepare(texts.config(tmp_path))
    second = prepare(texts.config(tmp_path, texts.two_paragraphs(70)))
    assert first.path != second.path


def test_a_cap_takes_the_first_documents(tmp_path):
    documents = texts.two_paragraphs(80)
    found = prepare(texts.config(tmp_path, documents, max_megabytes=0.01))
    stored = stored_documents(found, "train") + stored_documents(found, "heldout")
    assert sorted(stored) == sorted(" ".join(text.split()) for text in documents[: len(stored)])
    assert 9_000 < sum(len(text.encode()) for text in documents[: len(stored)]) <= 10_000


@pytest.mark.parametrize("stage", ["tokenizing train text", "tokenizing heldout text"])
def test_a_run_that_dies_leaves_nothing(tmp_path, stage):
    cfg = texts.config(tmp_path)

    def die(found, done, total):
        if found == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(cfg, progress=die)
    folder = tmp_path / "prepared"
    assert not folder.exists() or not list(folder.iterdir())
    assert prepare(cfg).train_tokens


def test_a_killed_run_does_not_pass_for_data(tmp_path, monkeypatch):
    cfg = texts.config(tmp_path)
    # A kill runs no clean-up: the half-made folder stays, but not under the name looked for.
    monkeypatch.setattr(MODULE.shutil, "rmtree", lambda *args, **kwargs: None)

    def die(stage, done, total):
        if stage == "tokenizing heldout text":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(cfg, progress=die)
    assert not list((tmp_path / "prepared").glob("[!.]*"))
    monkeypatch.undo()
    assert prepare(cfg).train_tokens


def test_damaged_or_foreign_folders_are_named(tmp_path):
    found = prepare(texts.config(tmp_path))
    record = json.loads((found.path / "data.json").read_text())
    (found.path / "data.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(DataError, match=r"format 99, this version reads \d+; delete the folder"):
        load_prepared(found.path)
    (found.path / "data.json").write_text("{")
    with pytest.raises(DataError, match="is no prepared data"):
        load_prepared(found.path)
    with pytest.raises(DataError, match="nowhere: is no prepared data"):
        load_prepared(tmp_path / "nowhere")


def test_text_too_small_to_split_is_an_error_with_the_counts(tmp_path):
    with pytest.raises(DataError, match="1 documents to train on and 0 held out"):
        prepare(texts.config(tmp_path, [texts.paragraph(1)], heldout_percent=0.001))
    with pytest.raises(DataError, match="0 documents to train on"):
        prepare(texts.config(tmp_path, []))


def test_progress_names_the_stages(tmp_path):
    seen = []
    prepare(texts.config(tmp_path), progress=lambda stage, done, total: seen.append(stage))
    assert list(dict.fromkeys(seen)) == [
        "reading text",
        "training the tokenizer",
        "tokenizing train text",
        "tokenizing heldout text",
    ]


def test_a_tokenizer_that_was_changed_under_its_tokens_is_named(tmp_path):
    made = texts.prepared(tmp_path)
    path = made.path / "tokenizer.json"
    before = path.read_text()
    path.write_text(before.replace("[MASK]", "[MUSK]"))
    with pytest.raises(DataError, match=r"tokenizer\.json: is not the tokenizer that made these"):
        load_prepared(made.path)
    path.write_text(before)
    assert load_prepared(made.path) == made
