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
    """Train lower-case WordPiece (BERT) or byte-level BPE (GPT-2).

    Args:
        kind: "wordpiece" or "byte-bpe".
        texts: what to learn from.
        vocab_size: entries, special tokens included.
    """
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # pyright: ignore
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=list(BERT_SPECIALS), show_progress=False
        )
    else:
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


def load_tokenizer(path: str) -> Tokenizer:
    """Load a tokenizer.json, a lower-case WordPiece vocab.txt, or a folder that holds one.

    Raises:
        DataError: if there is no such file or it holds no tokenizer.
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
    try:
        if file.suffix != ".txt":
            return Tokenizer.from_file(str(file))
        words = file.read_text(encoding="utf-8").split("\n")
        vocabulary = {word: index for index, word in enumerate(words) if word}
        missing = [token for token in BERT_SPECIALS if token not in vocabulary]
        if missing:
            raise DataError(f"{file}: is no BERT vocabulary, it lacks {missing}")
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # pyright: ignore
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.add_special_tokens(list(BERT_SPECIALS))
        return tokenizer
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
        vocab_size=tokenizer.get_vocab_size(),
        pad_id=first("[PAD]", "<pad>"),
        mask_id=first("[MASK]", "<mask>"),
        cls_id=first("[CLS]", "<s>"),
        sep_id=sep_id,
        special_ids=tuple(sorted(special)),
    )
