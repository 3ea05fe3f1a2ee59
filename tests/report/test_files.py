"""Files of a report: all or none."""

import pytest

from b2b_jax.report.files import write_files


def test_files_are_written_in_the_order_given(tmp_path):
    paths = write_files(tmp_path / "new", {"b.md": "ü", "a.png": b"\x89"})
    assert [path.name for path in paths] == ["b.md", "a.png"]
    assert paths[0].read_bytes() == "ü".encode() and paths[1].read_bytes() == b"\x89"


def test_one_that_cannot_be_written_leaves_the_others_as_they_were(tmp_path):
    (tmp_path / "a.md").write_text("old")
    with pytest.raises(FileNotFoundError):
        write_files(tmp_path, {"a.md": "new", "missing/b.md": "new"})
    assert (tmp_path / "a.md").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.md"]
