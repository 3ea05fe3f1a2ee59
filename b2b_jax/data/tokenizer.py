"""Training and loading tokenizers with the Hugging Face `tokenizers` library (effects: reads)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from b2b_jax.data.config import TRAINED_TOKENIZERS
from b2b_jax.data.errors import DataError

BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
END_OF_TEXT = "<|endoftext|>"
NONE = -1


@dataclass(frozen=True)
class TokenizerInfo:
    """Ids that training needs to know; -1 for a token that the vocabulary lacks.

    Attributes:
        vocab_size: number of ids.
        pad_id: fills sequences up.
        mask_id: stands for a hidden token.
        cls_id: opens a BERT sequence.
        sep_id: ends a document: [SEP], or <|endoftext|> in byte-level vocabularies.
        special_ids: ids that are never masked and never put in for a masked token.
    """

    vocab_size: int
    pad_id: int
    mask_id: int
    cls_id: int
    sep_id: int
    special_ids: tuple[int, ...]


def train_tokenizer(kind: str, texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Train lower-case WordPiece (BERT) or byte-level BPE (GPT-2); equal texts, equal result.

    Args:
        kind: "wordpiece" or "byte-bpe".
        texts: what to learn from; read twice, so no plain iterator.
        vocab_size: entries, special tokens included.
    """
    if kind == "wordpiece":
        # The trainer numbers the letters inside words in the order of a randomly seeded hash map,
        # and breaks ties between merges by those numbers: two runs give two vocabularies. A first
        # pass without merges finds the letters; the second gets them numbered, as if special.
        letters = _wordpiece_vocabulary(texts, list(BERT_SPECIALS), vocab_size=1)
        inner = sorted(token for token in letters if token.startswith("##") and len(token) == 3)
        fixed = [*BERT_SPECIALS, *inner]
        return _wordpiece(_wordpiece_vocabulary(texts, fixed, vocab_size=vocab_size))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def _wordpiece_vocabulary(
    texts: Iterable[str], fixed: list[str], *, vocab_size: int
) -> dict[str, int]:
    tokenizer = _wordpiece({})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=fixed, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer.get_vocab()


def _wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    """Lower-casing BERT tokenizer; its special tokens are those of BERT."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # pyright: ignore
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    if vocabulary:
        tokenizer.add_special_tokens(list(BERT_SPECIALS))
    return tokenizer


def tokenizer_file(path: str) -> Path:
    """The file that `load_tokenizer` reads: in a folder tokenizer.json, else vocab.txt.

    Raises:
        DataError: if there is no such file.
    """
    file = Path(path)
    if file.is_dir():
        present = [file / name for name in ("tokenizer.json", "vocab.txt")]
        file = next((candidate for candidate in present if candidate.exists()), present[0])
    if not file.exists():
        raise DataError(
            f"data.tokenizer: no file {file}; expected one of {TRAINED_TOKENIZERS}, or a "
            "tokenizer.json, vocab.txt or folder with one of them"
        )
    return file


def load_tokenizer(path: str) -> Tokenizer:
    """Load a tokenizer.json, a lower-case WordPiece vocab.txt, or a folder that holds one.

    Raises:
        DataError: if there is no such file or it holds no tokenizer.
    """
    file = tokenizer_file(path)
    try:
        if file.suffix != ".txt":
            tokenizer = Tokenizer.from_file(str(file))
            # Published files often cut to a model's length or pad: half of the text would be lost.
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
        words = file.read_text(encoding="utf-8").split("\n")
        vocabulary = {word: index for index, word in enumerate(words) if word}
        missing = [token for token in BERT_SPECIALS if token not in vocabulary]
        if missing:
            raise DataError(f"{file}: is no BERT vocabulary, it lacks {missing}")
        return _wordpiece(vocabulary)
    except DataError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"{file}: holds no tokenizer: {error}") from error


def tokenizer_info(tokenizer: Tokenizer) -> TokenizerInfo:
    """Look the special ids of a tokenizer up.

    Raises:
        DataError: if it has no token that can end a document.
    """

    def first(*names: str) -> int:
        ids = (tokenizer.token_to_id(name) for name in names)
        return next((found for found in ids if found is not None), NONE)

    sep_id = first("[SEP]", "</s>", END_OF_TEXT)
    if sep_id == NONE:
        raise DataError(
            f"the tokenizer has none of [SEP], </s> and {END_OF_TEXT} to end a document with"
        )
    named = [first(name) for name in (*BERT_SPECIALS, "<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    added = tokenizer.get_added_tokens_decoder()
    special = {index for index, token in added.items() if token.special}
    special |= {index for index in (*named, sep_id) if index != NONE}
    return TokenizerInfo(
        # Not the number of entries: a vocabulary with gaps has larger ids.
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        pad_id=first("[PAD]", "<pad>"),
        mask_id=first("[MASK]", "<mask>"),
        cls_id=first("[CLS]", "<s>"),
        sep_id=sep_id,
        special_ids=tuple(sorted(special)),
    )
