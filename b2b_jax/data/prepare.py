"""Text to tokens, once: split, tokenize, pack, store (effects: files)."""

import dataclasses
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from b2b_jax.data.config import TRAINED_TOKENIZERS, DataConfig
from b2b_jax.data.errors import DataError
from b2b_jax.data.sources import documents
from b2b_jax.data.split import DocumentFile, split_documents
from b2b_jax.data.tokenizer import (
    TokenizerInfo,
    load_tokenizer,
    tokenizer_file,
    tokenizer_info,
    train_tokenizer,
)

FORMAT = 2
CHUNK_CHARACTERS = 2**22
"""Text tokenized at once: documents may be a line or a book."""
Report = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Prepared:
    """A folder of tokens.

    Attributes:
        path: the folder.
        tokenizer: special ids.
        train_tokens: tokens to train on.
        heldout_tokens: tokens that are never trained on.
        digests: file -> its sha256, of tokens and tokenizer.
        fingerprint: sha256 over the digests; the same text gives the same.
    """

    path: Path
    tokenizer: TokenizerInfo
    train_tokens: int
    heldout_tokens: int
    digests: Mapping[str, str]
    fingerprint: str


def prepare(config: DataConfig, *, progress: Report | None = None) -> Prepared:
    """Tokenize the text of a run and store it, or find it stored.

    Documents are split into training and held-out ones by a hash of their text, and paragraphs that
    also occur in training are taken out of the held-out ones. The folder appears only when it is
    complete.

    Args:
        config: the text and its tokenizer.
        progress: called with (stage, done, total or None).

    Raises:
        DataError: if text or tokenizer cannot be used, or nothing is left to train or evaluate on.
    """
    if found := config.problems():
        raise DataError("\n".join(found))
    report = progress or (lambda stage, done, total: None)
    folder = Path(config.prepared_dir) / f"{config.source}-{_settings_hash(config)}"
    if (folder / "data.json").exists():
        return load_prepared(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    spool = temporary / "text"
    spool.mkdir(parents=True)
    try:
        texts = _counted(documents(config), report)
        train, heldout = split_documents(texts, spool, heldout_percent=config.heldout_percent)
        if not train.documents or not heldout.documents:
            raise DataError(
                f"data.source {config.source!r}: {train.documents} documents to train on and "
                f"{heldout.documents} held out; give more text, or raise data.heldout_percent"
            )
        if config.tokenizer in TRAINED_TOKENIZERS:
            report("training the tokenizer", 0, None)
            tokenizer = train_tokenizer(config.tokenizer, train, vocab_size=config.vocab_size)
        else:
            tokenizer = load_tokenizer(config.tokenizer)
        info = tokenizer_info(tokenizer)
        tokenizer.save(str(temporary / "tokenizer.json"))
        counts = {
            split: {
                "documents": texts.documents,
                "bytes": texts.bytes,
                "tokens": _write_tokens(temporary / f"{split}.npy", tokenizer, texts, info, report),
            }
            for split, texts in (("train", train), ("heldout", heldout))
        }
        shutil.rmtree(spool)
        files = ("train.npy", "heldout.npy", "tokenizer.json")
        record = {
            "format": FORMAT,
            "settings": dataclasses.asdict(config),
            "counts": counts,
            "sha256": {name: _sha256(temporary / name) for name in files},
            "tokenizer": dataclasses.asdict(info),
        }
        (temporary / "data.json").write_text(json.dumps(record, indent=1))
        try:
            temporary.rename(folder)
        except OSError:
            # Another process may have made the same folder meanwhile; its content is the same.
            if not (folder / "data.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load_prepared(folder)


def load_prepared(path: str | Path) -> Prepared:
    """Open a folder that `prepare` wrote.

    Raises:
        DataError: if it is no such folder, one of another format version, or its tokenizer has been
            changed.
    """
    path = Path(path)
    try:
        record: dict[str, Any] = json.loads((path / "data.json").read_text())
        if record["format"] != FORMAT:
            raise DataError(
                f"{path}: prepared data of format {record['format']}, this version reads {FORMAT}; "
                "delete the folder and prepare it again"
            )
        if _sha256(path / "tokenizer.json") != record["sha256"]["tokenizer.json"]:
            raise DataError(
                f"{path}/tokenizer.json: is not the tokenizer that made these tokens; put that one "
                "back, or delete the folder and prepare it again"
            )
        info = record["tokenizer"]
        return Prepared(
            path=path,
            tokenizer=TokenizerInfo(**{**info, "special_ids": tuple(info["special_ids"])}),
            train_tokens=record["counts"]["train"]["tokens"],
            heldout_tokens=record["counts"]["heldout"]["tokens"],
            digests=record["sha256"],
            fingerprint=hashlib.sha256(
                json.dumps(record["sha256"], sort_keys=True).encode()
            ).hexdigest(),
        )
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: is no prepared data ({error}); delete the folder and prepare it again"
        ) from error


def _counted(texts: Iterable[str], report: Report) -> Iterator[str]:
    for number, text in enumerate(texts):
        if number % 1000 == 0:
            report("reading text", number, None)
        yield text


def _settings_hash(config: DataConfig) -> str:
    settings: dict[str, Any] = {
        k: v for k, v in dataclasses.asdict(config).items() if k != "prepared_dir"
    }
    if config.tokenizer not in TRAINED_TOKENIZERS:
        # The content, not the path, decides what the tokens are.
        settings["tokenizer"] = _sha256(tokenizer_file(config.tokenizer))
        del settings["vocab_size"]
    if config.source == "files":
        # Edited files are other data.
        settings["files"] = [
            (path, os.stat(path).st_size, os.stat(path).st_mtime_ns)
            for pattern in config.paths
            for path in sorted(glob.glob(pattern, recursive=True))
        ]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _write_tokens(
    path: Path, tokenizer: Tokenizer, texts: DocumentFile, info: TokenizerInfo, report: Report
) -> int:
    """Tokenize document by document into a flat array on disk; return its length."""
    dtype = np.dtype(np.uint16 if info.vocab_size <= 2**16 else np.uint32)
    # "[SEP]" written in a text is three words, not the end of a document.
    tokenizer.encode_special_tokens = True
    count = done = 0
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        for chunk in _chunks(texts):
            for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
                tokens = np.asarray([*encoding.ids, info.sep_id], dtype)
                file.write(tokens.tobytes())
                count += len(tokens)
            done += len(chunk)
            report(f"tokenizing {path.stem} text", done, texts.documents)
    # The header of an .npy file states the length, which is known only now.
    header = {"descr": dtype.str, "fortran_order": False, "shape": (count,)}
    with path.open("wb") as file, raw.open("rb") as body:
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(body, file, 1 << 20)
    raw.unlink()
    return count


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk, size = [], 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
