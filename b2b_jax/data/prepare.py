"""Text to tokens, once: split, tokenize, pack, store (effects: files)."""

import dataclasses
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from b2b_jax.data.config import TRAINED_TOKENIZERS, DataConfig
from b2b_jax.data.errors import DataError
from b2b_jax.data.sources import documents
from b2b_jax.data.tokenizer import TokenizerInfo, load_tokenizer, tokenizer_info, train_tokenizer

FORMAT = 1
CHUNK_DOCUMENTS = 512
Report = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Prepared:
    """A folder of tokens.

    Attributes:
        path: the folder.
        tokenizer: special ids.
        train_tokens: tokens to train on.
        heldout_tokens: tokens that are never trained on.
        fingerprint: sha256 over tokens and tokenizer; the same text gives the same.
    """

    path: Path
    tokenizer: TokenizerInfo
    train_tokens: int
    heldout_tokens: int
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
    report = progress or (lambda stage, done, total: None)
    folder = Path(config.prepared_dir) / f"{config.source}-{_settings_hash(config)}"
    if (folder / "data.json").exists():
        return load_prepared(folder)
    report("reading text", 0, None)
    train, heldout = _split(documents(config), config.heldout_percent)
    if not train or not heldout:
        raise DataError(
            f"data.source {config.source!r}: {len(train)} documents to train on and {len(heldout)} "
            "held out; give more text, or raise data.heldout_percent"
        )
    if config.tokenizer in TRAINED_TOKENIZERS:
        report("training the tokenizer", 0, None)
        tokenizer = train_tokenizer(config.tokenizer, train, vocab_size=config.vocab_size)
    else:
        tokenizer = load_tokenizer(config.tokenizer)
    info = tokenizer_info(tokenizer)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        tokenizer.save(str(temporary / "tokenizer.json"))
        counts = {}
        for name, texts in (("train", train), ("heldout", heldout)):
            report(f"tokenizing {name} text", 0, len(texts))
            tokens = _tokenize(tokenizer, texts, info)
            np.save(temporary / f"{name}.npy", tokens)
            counts[name] = {
                "documents": len(texts),
                "bytes": sum(len(text.encode()) for text in texts),
                "tokens": len(tokens),
            }
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
        DataError: if it is no such folder, or one of another format version.
    """
    path = Path(path)
    try:
        record: dict[str, Any] = json.loads((path / "data.json").read_text())
        if record["format"] != FORMAT:
            raise DataError(
                f"{path}: prepared data of format {record['format']}, this version reads {FORMAT}; "
                "delete the folder and prepare it again"
            )
        info = record["tokenizer"]
        return Prepared(
            path=path,
            tokenizer=TokenizerInfo(**{**info, "special_ids": tuple(info["special_ids"])}),
            train_tokens=record["counts"]["train"]["tokens"],
            heldout_tokens=record["counts"]["heldout"]["tokens"],
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


def _settings_hash(config: DataConfig) -> str:
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "prepared_dir"}
    if config.source == "files":
        # Edited files are other data.
        settings["files"] = [
            (path, os.stat(path).st_size, os.stat(path).st_mtime_ns)
            for pattern in config.paths
            for path in sorted(glob.glob(pattern, recursive=True))
        ]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _split(texts: Iterable[str], percent: float) -> tuple[list[str], list[str]]:
    train, candidates = [], []
    for text in texts:
        place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
        (candidates if 100 * place < percent else train).append(text)
    known = {key for text in train for key in map(_normalised, _paragraphs(text))}
    heldout = []
    for text in candidates:
        new = [p for p in _paragraphs(text) if _normalised(p) not in known]
        if new:
            heldout.append("\n\n".join(new))
    return train, heldout


def _paragraphs(text: str) -> Iterator[str]:
    return (part for part in text.split("\n\n") if part.strip())


def _normalised(paragraph: str) -> str:
    return " ".join(paragraph.lower().split())


def _tokenize(tokenizer: Tokenizer, texts: list[str], info: TokenizerInfo) -> np.ndarray:
    dtype = np.uint16 if info.vocab_size <= 2**16 else np.uint32
    parts = []
    for start in range(0, len(texts), CHUNK_DOCUMENTS):
        chunk = texts[start : start + CHUNK_DOCUMENTS]
        for encoding in tokenizer.encode_batch(chunk, add_special_tokens=False):
            parts.append(np.asarray([*encoding.ids, info.sep_id], dtype))
    return np.concatenate(parts)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
