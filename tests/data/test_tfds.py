"""A TFDS text dataset, stored here and read by name without TensorFlow."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import texts

from b2b_jax.data import DataConfig, DataError, prepare
from b2b_jax.data.sources import documents

tfds: Any = pytest.importorskip("tensorflow_datasets")
TEXTS = [*texts.two_paragraphs(40), "Unicode stays whole: é, 中文, 🙂."]


class B2bTinyText(tfds.core.GeneratorBasedBuilder):
    """Forty-one texts, made without a download."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = tfds.features.FeaturesDict({"body": tfds.features.Text(), "number": np.int64})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, text in enumerate(TEXTS):
            yield number, {"body": text, "number": number}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    B2bTinyText(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def config(folder: Path, **changes: Any) -> DataConfig:
    settings: dict[str, Any] = {
        "source": "tfds",
        "tfds_name": "b2b_tiny_text",
        "tfds_data_dir": str(folder),
        "text_field": "body",
    }
    return DataConfig(**{**settings, **changes})


def test_a_stored_dataset_is_read_by_name_without_tensorflow(stored):
    assert list(documents(config(stored))) == TEXTS
    assert "tensorflow" not in sys.modules


def test_a_dataset_known_only_by_its_files_is_read_by_name(stored, monkeypatch):
    registered = sys.modules["tensorflow_datasets.core.registered"]
    monkeypatch.delitem(registered._DATASET_REGISTRY, "b2b_tiny_text")
    assert list(documents(config(stored))) == TEXTS
    assert list(documents(config(stored, tfds_name="b2b_tiny_text:1.0.0"))) == TEXTS


def test_a_dataset_that_is_not_stored_yet_is_made(tmp_path):
    assert list(documents(config(tmp_path))) == TEXTS
    assert list(tmp_path.glob("b2b_tiny_text/1.0.0/*.array_record*"))


def test_a_slice_of_a_split_is_read(stored):
    assert list(documents(config(stored, tfds_split="train[:3]"))) == TEXTS[:3]


def test_a_stored_dataset_is_prepared(stored, tmp_path):
    cfg = config(stored, vocab_size=400, heldout_percent=20.0, prepared_dir=str(tmp_path))
    assert prepare(cfg).train_tokens > 1000


def test_an_unknown_feature_names_those_present(stored):
    with pytest.raises(DataError, match=r"no feature 'text'; it has \['body', 'number'\]"):
        list(documents(config(stored, text_field="text")))


def test_an_unknown_dataset_or_split_is_named(stored):
    with pytest.raises(DataError, match="b2b_no_such_text"):
        list(documents(config(stored, tfds_name="b2b_no_such_text")))
    with pytest.raises(DataError, match="split 'test'"):
        list(documents(config(stored, tfds_split="test")))


def test_without_tfds_the_error_says_what_to_install(stored, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"pip install 'b2b_jax\[tfds\]'"):
        list(documents(config(stored)))
