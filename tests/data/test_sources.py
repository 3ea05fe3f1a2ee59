"""Documents from files, and what is said about files that cannot be read."""

import gzip
import json
import lzma
from typing import Any

import pytest
import texts

from b2b_jax.data import DataConfig, DataError
from b2b_jax.data.sources import documents


def read(*paths: Any, **changes: Any) -> list[str]:
    return list(documents(DataConfig(source="files", paths=tuple(map(str, paths)), **changes)))


@pytest.mark.parametrize(("suffix", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open)])
def test_text_and_jsonl_are_read_compressed_or_not(tmp_path, suffix, opener):
    text, lines = tmp_path / f"a.txt{suffix}", tmp_path / f"b.jsonl{suffix}"
    with opener(text, "wb") as file:
        file.write("\n\none é\ntwo\n \t\n\r\nthree\n\n".encode())
    with opener(lines, "wb") as file:
        file.write(b'{"body": "four\\n\\nfive"}\n\n{"body": " "}\n{"body": "six", "id": 1}\n')
    assert read(text) == ["one é\ntwo", "three"]
    assert read(lines, text_field="body") == ["four\n\nfive", "six"]


def test_globs_are_sorted_and_paths_keep_their_order(tmp_path):
    for name in "cab":
        (tmp_path / f"{name}.txt").write_text(name)
    assert read(tmp_path / "*.txt") == ["a", "b", "c"]
    assert read(tmp_path / "c.txt", tmp_path / "a.txt") == ["c", "a"]


def test_a_cap_stops_at_whole_documents(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(["x" * 100] * 50))
    assert len(read(tmp_path / "a.txt", max_megabytes=0.001)) == 10


def test_bad_utf8_is_placed_to_the_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\n\nbad \xff here\n")
    with pytest.raises(DataError, match=r"a\.txt: byte 10 is not UTF-8"):
        read(tmp_path / "a.txt")


def test_bad_json_lines_are_numbered(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n{"text": \n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: is not JSON"):
        read(path)
    path.write_text('{"text": "fine"}\n{"body": "x", "id": 1}\n')
    with pytest.raises(DataError, match=r"line 2: .* field 'text'; found \['body', 'id'\]"):
        read(path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match=r"line 1: .* found list"):
        read(path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz"])
def test_what_is_not_compressed_as_named_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"plain text")
    with pytest.raises(DataError, match=rf"{name}: cannot be read"):
        read(tmp_path / name)


def test_a_truncated_archive_is_an_error(tmp_path):
    whole = gzip.compress("\n\n".join(texts.two_paragraphs(50)).encode())
    (tmp_path / "a.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.txt\.gz: cannot be read"):
        read(tmp_path / "a.txt.gz")


def test_a_path_that_matches_nothing_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere/\*\.txt' matches no file"):
        read(tmp_path / "nowhere" / "*.txt")


def test_unicode_line_separators_do_not_split_json(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False), encoding="utf-8")
    assert read(path) == ["a\u2028b\x85c"]
