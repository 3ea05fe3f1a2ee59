"""Traps in real text and real tokenizer files that would spoil data without a word."""

import dataclasses
import gzip
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texts
from tokenizers import Tokenizer

from b2b_jax.data import DataConfig, DataError, mask_tokens, prepare, train_batches, window_dataset
from b2b_jax.data.sources import documents
from b2b_jax.data.tokenizer import train_tokenizer


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe"])
def test_training_a_tokenizer_twice_gives_the_same_one(kind):
    corpus = texts.two_paragraphs(60)
    found = {train_tokenizer(kind, corpus, vocab_size=400).to_str() for _ in range(4)}
    assert len(found) == 1


def test_the_same_text_has_the_same_fingerprint(tmp_path):
    cfg = texts.config(tmp_path)
    other = dataclasses.replace(cfg, prepared_dir=str(tmp_path / "other"))
    assert prepare(cfg).fingerprint == prepare(other).fingerprint


@pytest.mark.parametrize(
    ("kind", "literal"), [("wordpiece", "[SEP] [MASK]"), ("byte-bpe", "<|endoftext|>")]
)
def test_special_tokens_written_in_a_text_are_words(tmp_path, kind, literal):
    corpus = [f"{text} {literal}" for text in texts.two_paragraphs(80)]
    found = prepare(texts.config(tmp_path, corpus, tokenizer=kind))
    both = np.concatenate([np.load(found.path / f"{name}.npy") for name in ("train", "heldout")])
    assert (both == found.tokenizer.sep_id).sum() == 80
    assert found.tokenizer.mask_id not in both


def test_a_tokenizer_file_that_truncates_and_pads_does_neither_here(tmp_path):
    whole = prepare(texts.config(tmp_path))
    tokenizer = Tokenizer.from_file(str(whole.path / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = prepare(texts.config(tmp_path, tokenizer=str(tmp_path)))
    assert found.train_tokens == whole.train_tokens


def test_an_edited_tokenizer_file_is_other_data_and_a_moved_one_is_not(tmp_path):
    for size, name in ((400, "a.json"), (330, "b.json")):
        corpus = texts.two_paragraphs(60)
        train_tokenizer("wordpiece", corpus, vocab_size=size).save(str(tmp_path / name))
    cfg = texts.config(tmp_path, tokenizer=str(tmp_path / "a.json"))
    first = prepare(cfg)
    shutil.copy(tmp_path / "a.json", tmp_path / "c.json")
    moved = dataclasses.replace(cfg, tokenizer=str(tmp_path / "c.json"))
    assert prepare(moved) == first
    shutil.copy(tmp_path / "b.json", tmp_path / "a.json")
    assert prepare(cfg).tokenizer.vocab_size < first.tokenizer.vocab_size


@pytest.mark.parametrize("separator", ["\r\n\r\n", "\n \t\n", "\n\n\n"])
def test_heldout_paragraphs_are_found_behind_any_blank_line(tmp_path, separator):
    shared = texts.paragraph(9999)
    corpus = [texts.paragraph(n) + separator + shared for n in range(80)]
    found = prepare(texts.config(tmp_path, corpus))
    tokenizer = Tokenizer.from_file(str(found.path / "tokenizer.json"))
    heldout = tokenizer.decode(np.load(found.path / "heldout.npy").tolist())
    assert heldout
    assert shared not in heldout


def test_half_a_surrogate_pair_does_not_stop_the_preparation(tmp_path):
    corpus = [f"{text} \ud800" for text in texts.two_paragraphs(80)]
    assert prepare(texts.config(tmp_path, corpus)).train_tokens


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfhello")
    assert list(documents(DataConfig(source="files", paths=(str(path),)))) == ["hello"]


def test_a_file_named_twice_is_read_once(tmp_path):
    cfg = texts.config(tmp_path)
    cfg = dataclasses.replace(cfg, paths=(*cfg.paths, str(tmp_path / "*.jsonl")))
    assert len(list(documents(cfg))) == 80


def test_a_damaged_archive_is_an_error(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"hello world " * 500)[:30] + b"zzzzzzzzzzzz" * 9)
    with pytest.raises(DataError, match=r"a\.txt\.gz: cannot be read"):
        list(documents(DataConfig(source="files", paths=(str(path),))))


def test_settings_are_checked_before_any_text_is_read(tmp_path):
    cfg = DataConfig(
        source="files",
        paths=(str(tmp_path / "none.txt"), str(tmp_path)),
        tokenizer="wordpeice",
        max_megabytes=float("nan"),
        prepared_dir=str(tmp_path / "prepared"),
    )
    with pytest.raises(DataError) as error:
        prepare(cfg)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert "none.txt' matches no file" in lines[0]
    assert "is a folder" in lines[1]
    assert "did you mean 'wordpiece'?" in lines[2]
    assert "max_megabytes: found nan" in lines[3]
    assert not (tmp_path / "prepared").exists()


def test_sizes_that_cannot_be_are_errors(tmp_path):
    found = prepare(texts.config(tmp_path))
    with pytest.raises(DataError, match="found 2, expected at least 3 for bert windows"):
        window_dataset(found, "train", sequence_length=2, layout="bert")
    ids = jnp.full((2, 4), 7)
    with pytest.raises(DataError, match="found 5, expected 1 to the sequence length 4"):
        mask_tokens(jax.random.key(0), ids, num_masked=5, tokenizer=found.tokenizer)


def test_batches_of_one_row_are_served(tmp_path):
    found = prepare(texts.config(tmp_path))

    def first(batch_size, **rows):
        batches = train_batches(
            found,
            sequence_length=16,
            layout="bert",
            batch_size=batch_size,
            seed=0,
            start_step=0,
            **rows,
        )
        return next(batches)["input_ids"]

    parts = [first(8, rows=[index]) for index in range(8)]
    np.testing.assert_array_equal(np.concatenate(parts), first(8))
    np.testing.assert_array_equal(first(1), first(8)[:1])


def test_documents_far_larger_than_a_chunk_stay_whole(tmp_path, monkeypatch):
    corpus = texts.two_paragraphs(80)
    plain = prepare(texts.config(tmp_path, corpus))
    monkeypatch.setattr(sys.modules["b2b_jax.data.prepare"], "CHUNK_CHARACTERS", 50)
    (tmp_path / "b").mkdir()
    assert prepare(texts.config(tmp_path / "b", corpus)).fingerprint == plain.fingerprint
