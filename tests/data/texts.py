"""Small deterministic texts, and data prepared from them."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from b2b_jax.data import DataConfig, Prepared, prepare

_RANDOM = random.Random(5)
WORDS = ["".join(_RANDOM.choices("aeioubcdfglmnprst", k=_RANDOM.randint(2, 8))) for _ in range(400)]


def paragraph(seed: int, *, words: int = 30) -> str:
    """A paragraph that no other seed gives."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def two_paragraphs(count: int) -> list[str]:
    """Documents of two paragraphs each, all different."""
    return [f"{paragraph(2 * n)}\n\n{paragraph(2 * n + 1)}" for n in range(count)]


def write_jsonl(path: Path, texts: Iterable[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def config(tmp_path: Path, texts: Iterable[str] | None = None, **changes: Any) -> DataConfig:
    """Settings for some documents in a file of a temporary folder."""
    path = write_jsonl(tmp_path / "text.jsonl", two_paragraphs(80) if texts is None else texts)
    settings: dict[str, Any] = {
        "source": "files",
        "paths": (path,),
        "vocab_size": 400,
        "heldout_percent": 20.0,
        "prepared_dir": str(tmp_path / "prepared"),
    }
    return DataConfig(**{**settings, **changes})


def prepared(tmp_path: Path, **changes: Any) -> Prepared:
    return prepare(config(tmp_path, **changes))
