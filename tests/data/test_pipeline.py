"""Batches: a pure function of (seed, step), whoever asks and from wherever they start."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import texts

from b2b_jax.data import DataError, Prepared, heldout_batches, train_batches, window_dataset

T, B = 16, 8


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return texts.prepared(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return texts.prepared(tmp_path_factory.mktemp("gpt2"), tokenizer="byte-bpe")


def batches(prepared: Prepared, count: int, **changes: Any) -> np.ndarray:
    settings: dict[str, Any] = {
        "sequence_length": T,
        "layout": "bert",
        "batch_size": B,
        "seed": 1,
        "start_step": 0,
    }
    iterator = train_batches(prepared, **{**settings, **changes})
    return np.stack([batch["input_ids"] for batch in itertools.islice(iterator, count)])


def test_a_batch_is_int32_of_the_asked_size(bert):
    assert batches(bert, 1).shape == (1, B, T)
    assert batches(bert, 1).dtype == np.int32


def test_equal_seeds_give_equal_batches_and_others_do_not(bert):
    np.testing.assert_array_equal(batches(bert, 5), batches(bert, 5))
    assert not np.array_equal(batches(bert, 5), batches(bert, 5, seed=2))


@pytest.mark.parametrize("start", [0, 1, 7, 61, 200])
def test_a_run_resumes_at_any_step(bert, start):
    whole = batches(bert, start + 3)
    np.testing.assert_array_equal(batches(bert, 3, start_step=start), whole[start:])


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("layout", ["bert", "gpt2"])
def test_batches_are_those_that_grain_would_shuffle(bert, gpt2, layout, case):
    prepared, random = {"bert": bert, "gpt2": gpt2}[layout], np.random.default_rng(case)
    windows = window_dataset(prepared, "train", sequence_length=T, layout=layout)
    size, seed = int(random.integers(1, min(len(windows), 40))), int(random.integers(2**32))
    # Two batches before and two after the end of an epoch, and sometimes other rows first.
    start = max(case * len(windows) // size - 2, 0)
    rows = random.permutation(size)[: max(size // (1 + case % 3), 1)]
    order = windows.seed(seed).shuffle().repeat(10)
    expected = [
        [order[step * size + int(row)]["input_ids"] for row in rows]
        for step in range(start, start + 4)
    ]
    found = batches(
        prepared, 4, layout=layout, batch_size=size, seed=seed, start_step=start, rows=rows
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("start", [0, 5])
def test_processes_share_the_rows_of_the_same_batches(bert, processes, start):
    shares = np.split(np.arange(B), processes)
    parts = [batches(bert, 4, start_step=start, rows=rows) for rows in shares]
    assert parts[0].shape == (4, B // processes, T)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), batches(bert, 4, start_step=start))


def test_every_epoch_has_each_window_once_in_another_order(bert):
    windows = window_dataset(bert, "train", sequence_length=T, layout="bert")
    expected = sorted(tuple(windows[index]["input_ids"]) for index in range(len(windows)))
    rows = batches(bert, len(windows), batch_size=2).reshape(-1, T)
    first, second = rows[: len(windows)], rows[len(windows) :]
    for epoch in (first, second):
        assert sorted(map(tuple, epoch)) == expected
    assert not np.array_equal(first, second)


def test_bert_windows_wrap_the_token_stream(bert):
    stream = np.load(bert.path / "train.npy")
    windows = window_dataset(bert, "train", sequence_length=T, layout="bert")
    assert len(windows) == len(stream) // (T - 2)
    for index in (0, 1, len(windows) - 1):
        row = windows[index]["input_ids"]
        assert row[0] == bert.tokenizer.cls_id
        assert row[-1] == bert.tokenizer.sep_id
        np.testing.assert_array_equal(row[1:-1], stream[index * (T - 2) : (index + 1) * (T - 2)])


def test_gpt2_windows_are_the_token_stream(gpt2):
    stream = np.load(gpt2.path / "train.npy")
    windows = window_dataset(gpt2, "train", sequence_length=T, layout="gpt2")
    assert len(windows) == len(stream) // T
    for index in (0, 1, len(windows) - 1):
        np.testing.assert_array_equal(
            windows[index]["input_ids"], stream[index * T : (index + 1) * T]
        )


def test_heldout_batches_are_always_the_same_and_span_the_split(bert):
    def read(count: int) -> np.ndarray:
        found = heldout_batches(
            bert, sequence_length=T, layout="bert", batch_size=4, max_batches=count
        )
        return np.stack([batch["input_ids"] for batch in found])

    windows = window_dataset(bert, "heldout", sequence_length=T, layout="bert")
    two = read(2)
    assert two.shape == (2, 4, T)
    np.testing.assert_array_equal(two, read(2))
    order = {tuple(windows[index]["input_ids"]): index for index in range(len(windows))}
    picks = [order[tuple(row)] for row in two.reshape(-1, T)]
    assert picks == sorted(set(picks))
    assert picks[-1] >= len(windows) // 2, "a few batches should not be the first documents only"
    assert len(read(10_000)) == len(windows) // 4


def test_more_sequences_than_windows_is_an_error_with_both_numbers(bert):
    windows = len(window_dataset(bert, "train", sequence_length=T, layout="bert"))
    with pytest.raises(DataError, match=rf"{windows} windows of {T} tokens .* one batch of 4096"):
        batches(bert, 1, batch_size=4096)


def test_a_window_longer_than_the_text_is_an_error(bert):
    with pytest.raises(DataError, match="fewer tokens than one window of 1000000"):
        batches(bert, 1, sequence_length=1_000_000)


def test_bert_windows_need_a_bert_tokenizer(gpt2):
    with pytest.raises(DataError, match=r"need \[CLS\] and \[SEP\]"):
        batches(gpt2, 1)


def test_any_rows_of_a_batch_can_be_read(bert):
    some = np.asarray([1, 2, 6])
    np.testing.assert_array_equal(batches(bert, 3, rows=some), batches(bert, 3)[:, some])


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


@pytest.mark.parametrize("size", [0, 5, 300])
def test_a_token_file_that_was_cut_off_is_named(tmp_path: Path, size: int):
    prepared = texts.prepared(tmp_path)
    cut(prepared.path / "train.npy", size)
    with pytest.raises(DataError, match=rf"train\.npy: cannot be read .*; delete {prepared.path} "):
        batches(prepared, 1)


def test_a_missing_token_file_is_named(tmp_path: Path):
    prepared = texts.prepared(tmp_path)
    (prepared.path / "train.npy").unlink()
    with pytest.raises(DataError, match=r"train\.npy: cannot be read"):
        batches(prepared, 1)


def test_a_token_file_of_another_text_is_named(tmp_path: Path):
    prepared = texts.prepared(tmp_path)
    np.save(prepared.path / "train.npy", np.zeros(50, np.uint16))
    expected = f"found 50 tokens, expected {prepared.train_tokens}"
    with pytest.raises(DataError, match=rf"train\.npy: cannot be read \({expected}\)"):
        batches(prepared, 1)


def test_a_token_file_that_is_cut_off_while_it_is_read_is_named(tmp_path: Path):
    prepared = texts.prepared(tmp_path)
    iterator = train_batches(
        prepared, sequence_length=T, layout="bert", batch_size=B, seed=1, start_step=0
    )
    next(iterator)
    cut(prepared.path / "train.npy", 300)
    with pytest.raises(DataError, match=r"train\.npy: cannot be read \(it ends before token"):
        list(itertools.islice(iterator, 100))  # some batches have been read ahead


def test_a_token_file_that_is_deleted_while_it_is_read_serves_on(tmp_path: Path):
    prepared = texts.prepared(tmp_path)
    expected = batches(prepared, 40)
    iterator = train_batches(
        prepared, sequence_length=T, layout="bert", batch_size=B, seed=1, start_step=0
    )
    (prepared.path / "train.npy").unlink()
    found = [batch["input_ids"] for batch in itertools.islice(iterator, 40)]
    np.testing.assert_array_equal(np.stack(found), expected)
