"""Documents into training and held-out ones, on disk, so that text may exceed memory."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

BLANK_LINE = re.compile(r"\n[ \t\r\f\v]*\n\s*")


class DocumentFile:
    """Documents in a file, one JSON string a line; may be iterated over any number of times."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents = 0
        self.bytes = 0
        path.touch()

    def extend(self, texts: Iterable[str]) -> None:
        """Append documents."""
        with self.path.open("a", encoding="utf-8") as file:
            for text in texts:
                file.write(json.dumps(text) + "\n")
                self.documents += 1
                self.bytes += len(text.encode())

    def __iter__(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def split_documents(
    texts: Iterable[str], folder: Path, *, heldout_percent: float
) -> tuple[DocumentFile, DocumentFile]:
    """Split by a hash of each document; no held-out paragraph is left that also occurs in training.

    Paragraphs are compared without regard to case and white space; held-out documents lose those
    that training has, and vanish where none is left.

    Args:
        texts: documents.
        folder: for the two files.
        heldout_percent: share of the documents, 0 to 100.
    """
    train = DocumentFile(folder / "train.jsonl")
    candidates = DocumentFile(folder / "candidates.jsonl")
    heldout = DocumentFile(folder / "heldout.jsonl")
    # Only held-out paragraphs are remembered: they are few, whatever the size of the text.
    suspects: set[bytes] = set()

    def train_texts() -> Iterator[str]:
        for text in texts:
            place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
            if 100 * place >= heldout_percent:
                yield text
            else:
                candidates.extend([text])
                suspects.update(map(_key, _paragraphs(text)))

    train.extend(train_texts())
    known = {key for text in train for key in map(_key, _paragraphs(text)) if key in suspects}
    kept = ([p for p in _paragraphs(text) if _key(p) not in known] for text in candidates)
    heldout.extend("\n\n".join(paragraphs) for paragraphs in kept if paragraphs)
    candidates.path.unlink()
    return train, heldout


def _paragraphs(text: str) -> list[str]:
    return [part for part in BLANK_LINE.split(text.replace("\r\n", "\n")) if part.strip()]


def _key(paragraph: str) -> bytes:
    normalised = " ".join(paragraph.lower().split())
    return hashlib.blake2b(normalised.encode(), digest_size=12).digest()
