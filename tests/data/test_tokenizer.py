"""Tokenizers: trained, loaded, and what training has to know about them."""

import pytest
import texts
from tokenizers import Tokenizer, models

from b2b_jax.data import DataError
from b2b_jax.data.tokenizer import load_tokenizer, tokenizer_info, train_tokenizer

TEXTS = texts.two_paragraphs(40)
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def test_wordpiece_is_bert():
    tokenizer = train_tokenizer("wordpiece", TEXTS, vocab_size=400)
    info = tokenizer_info(tokenizer)
    assert info.vocab_size == 400
    assert (info.pad_id, info.cls_id, info.sep_id, info.mask_id) == (0, 2, 3, 4)
    assert info.special_ids == (0, 1, 2, 3, 4)
    assert [tokenizer.id_to_token(index) for index in range(5)] == list(BERT)
    word = texts.WORDS[0]
    assert tokenizer.decode(tokenizer.encode(word.upper(), add_special_tokens=False).ids) == word


def test_byte_bpe_is_gpt2_and_loses_nothing():
    tokenizer = train_tokenizer("byte-bpe", TEXTS, vocab_size=400)
    info = tokenizer_info(tokenizer)
    assert info.vocab_size == 400
    assert (info.pad_id, info.cls_id, info.mask_id) == (-1, -1, -1)
    assert info.special_ids == (info.sep_id,) == (tokenizer.token_to_id("<|endoftext|>"),)
    text = "Any text: \t é 中文 🙂\n\n  end"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_tokenizer_json_loads_from_its_path_and_its_folder(tmp_path):
    made = train_tokenizer("wordpiece", TEXTS, vocab_size=300)
    made.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(str(path))
        assert loaded.get_vocab() == made.get_vocab()
        assert tokenizer_info(loaded) == tokenizer_info(made)


def test_a_vocab_txt_is_lower_casing_bert(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*BERT, "grow", "##ing", "model"]) + "\n")
    for path in (tmp_path, tmp_path / "vocab.txt"):
        tokenizer = load_tokenizer(str(path))
        assert tokenizer.encode("Growing MODEL x", add_special_tokens=False).ids == [5, 6, 7, 1]
        assert tokenizer_info(tokenizer).vocab_size == 8


def test_what_is_no_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file .*nowhere"):
        load_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no file .*tokenizer\.json"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "vocab.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match=r"lacks \['\[PAD\]'"):
        load_tokenizer(str(tmp_path / "vocab.txt"))


def test_a_tokenizer_without_an_end_token_is_an_error():
    with pytest.raises(DataError, match=r"none of \[SEP\], </s> and <\|endoftext\|>"):
        tokenizer_info(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
