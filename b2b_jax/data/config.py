"""Where text comes from and how it is tokenized."""

import difflib
import glob
from dataclasses import dataclass
from pathlib import Path

SOURCES = ("builtin", "files", "tfds")
TRAINED_TOKENIZERS = ("wordpiece", "byte-bpe")


@dataclass(frozen=True)
class DataConfig:
    """The text of a run; everything here but ``prepared_dir`` decides what is trained on."""

    source: str = "builtin"
    """"builtin" (documentation of the installed Python packages), "files" or "tfds"."""
    paths: tuple[str, ...] = ()
    """Text files, .jsonl files or globs ("files"); .gz and .xz are read as they are."""
    text_field: str = "text"
    """Field that holds the text, in JSON lines and TFDS examples."""
    tfds_name: str = ""
    """Name of a TensorFlow Datasets text dataset, with config and version if wanted; several are
    read one after the other, as in "wikipedia/20230601.en, huggingface:bookcorpus"."""
    tfds_split: str = "train"
    """Split, or slice of one, of the TFDS dataset."""
    tfds_data_dir: str = ""
    """Folder of prepared TFDS datasets; the default of TFDS where empty."""
    tokenizer: str = "wordpiece"
    """"wordpiece" or "byte-bpe" train one on the text; otherwise a tokenizer.json, a vocab.txt of
    lower-case WordPiece, or a folder with one of them."""
    vocab_size: int = 8192
    """Entries of a tokenizer that is trained."""
    heldout_percent: float = 2.0
    """Share of the documents that is never trained on."""
    max_megabytes: float = 0.0
    """Text to use at most, in 10^6 bytes; 0 uses all."""
    prepared_dir: str = "runs/data"
    """Folder for tokenized text."""

    def problems(self) -> list[str]:
        """Every setting that makes no sense: field, value found, values expected."""
        found = []
        if self.source not in SOURCES:
            near = difflib.get_close_matches(self.source, SOURCES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            found.append(f"data.source: found {self.source!r}, expected one of {SOURCES}{hint}")
        if self.source == "files" and not self.paths:
            found.append("data.paths: found nothing, expected files for data.source 'files'")
        if self.source == "files":
            for pattern in self.paths:
                matches = glob.glob(pattern, recursive=True)
                if not matches:
                    found.append(f"data.paths: {pattern!r} matches no file")
                found += [
                    f"data.paths: {match!r} is a folder, expected files; try {match + '/*.txt'!r}"
                    for match in matches
                    if Path(match).is_dir()
                ]
        if self.source == "tfds" and not self.tfds_name:
            found.append("data.tfds_name: found nothing, expected a name for data.source 'tfds'")
        if not 0 < self.heldout_percent < 100:
            found.append(
                f"data.heldout_percent: found {self.heldout_percent}, expected above 0, below 100"
            )
        if self.tokenizer in TRAINED_TOKENIZERS and self.vocab_size < 300:
            found.append(f"data.vocab_size: found {self.vocab_size}, expected at least 300")
        if self.tokenizer not in TRAINED_TOKENIZERS and not Path(self.tokenizer).exists():
            near = difflib.get_close_matches(self.tokenizer, TRAINED_TOKENIZERS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            found.append(
                f"data.tokenizer: found {self.tokenizer!r}, expected one of {TRAINED_TOKENIZERS}, "
                f"or an existing tokenizer.json, vocab.txt or folder with one of them{hint}"
            )
        if not self.max_megabytes >= 0:  # nor nan
            found.append(f"data.max_megabytes: found {self.max_megabytes}, expected at least 0")
        return found
