"""Documents from the built-in corpus, files, or TensorFlow Datasets (effects: reads)."""

import glob
import gzip
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from b2b_jax.data.config import DataConfig
from b2b_jax.data.corpus import builtin_documents
from b2b_jax.data.errors import DataError

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


def documents(config: DataConfig) -> Iterator[str]:
    """The text of a run, one document at a time, in an order that does not change.

    Args:
        config: where it comes from and how much of it to use.

    Raises:
        DataError: names the file or dataset that cannot be read, and why.
    """
    readers = {"builtin": lambda _: builtin_documents(), "files": _files, "tfds": _tfds}
    limit = config.max_megabytes * 1e6
    used = 0
    for document in readers[config.source](config):
        if not document.strip():
            continue
        encoded = document.encode("utf-8", "replace")
        used += len(encoded)
        if not document.isascii():
            # Half of a surrogate pair, as JSON and Python escapes may spell, cannot be stored.
            document = encoded.decode("utf-8")
        if limit and used > limit:
            return
        yield document


def _files(config: DataConfig) -> Iterator[str]:
    paths: dict[Path, None] = {}  # ordered; a file that two globs match is read once
    for pattern in config.paths:
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise DataError(f"data.paths: {pattern!r} matches no file")
        paths.update((Path(match), None) for match in matches)
    for path in paths:
        stem = path.with_suffix("") if path.suffix in OPENERS else path
        reader = _json_lines if stem.suffix in (".jsonl", ".json") else _plain_text
        yield from reader(path, config.text_field)


def _lines(path: Path) -> Iterator[str]:
    opener = OPENERS.get(path.suffix, open)
    offset = 0
    try:
        with opener(path, "rb") as file:
            for line in file:
                try:
                    yield line.decode("utf-8" if offset else "utf-8-sig")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}: byte {offset + error.start} is not UTF-8 ({error.reason}); "
                        "convert the file first, for example with iconv"
                    ) from error
                offset += len(line)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _plain_text(path: Path, field: str) -> Iterator[str]:
    """Documents are separated by blank lines."""
    del field
    for blank, group in itertools.groupby(_lines(path), key=lambda line: not line.strip()):
        if not blank:
            yield "".join(group).strip()


def _json_lines(path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: is not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            fields = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise DataError(
                f"{path}, line {number}: has no text in field {field!r}; found {fields}. "
                "Set data.text_field"
            )
        yield record[field]


def _tfds(config: DataConfig) -> Iterator[str]:
    try:
        import tensorflow_datasets
        import tensorflow_datasets.text
    except ImportError as error:
        raise DataError(
            "data.source 'tfds' needs TensorFlow Datasets: pip install 'b2b_jax[tfds]'"
        ) from error
    for name in config.tfds_name.split(","):
        yield from _tfds_dataset(tensorflow_datasets, name.strip(), config)


def _tfds_dataset(tfds: Any, name: str, config: DataConfig) -> Iterator[str]:
    where = {"data_dir": config.tfds_data_dir} if config.tfds_data_dir else {}
    try:
        builder = tfds.builder(name, **where, file_format="array_record")
        if not builder.data_path.exists():
            builder.download_and_prepare(file_format="array_record")
        source: Any = builder.as_data_source(split=config.tfds_split)
    except Exception as error:  # TFDS raises its own and every library's errors here
        raise DataError(
            f"TFDS dataset {name!r}, split {config.tfds_split!r}, in "
            f"{config.tfds_data_dir or 'the default folder'}: {type(error).__name__}: {error}"
        ) from error
    for example in source:
        if config.text_field not in example:
            raise DataError(
                f"TFDS dataset {name!r} has no feature {config.text_field!r}; it has "
                f"{sorted(example)}. Set data.text_field"
            )
        text = example[config.text_field]
        if not isinstance(text, (bytes, str)):
            raise DataError(
                f"TFDS dataset {name!r}: feature {config.text_field!r} holds "
                f"{type(text).__name__}, expected text. Set data.text_field to one of "
                f"{sorted(key for key, value in example.items() if isinstance(value, bytes))}"
            )
        yield text.decode("utf-8", "replace") if isinstance(text, bytes) else text
