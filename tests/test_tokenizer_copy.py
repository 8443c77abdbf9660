"""Composed and decomposed text get the same tokens from an exported tokenizer; composed text those of the published."""

import unicodedata

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from xqg_vdb.errors import ModelError
from xqg_vdb.export.quantise import write_composing
from xqg_vdb.texts.languages import question_bank

BANK = [text for texts in question_bank().values() for text in texts[:3]]


def a_tokenizer(path, normalizer=None):
    """A token per character."""
    letters = sorted(
        {letter for text in BANK for form in ("NFC", "NFD") for letter in unicodedata.normalize(form, text)}
    )
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(["?", *letters])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.save(str(path))
    return tokenizer


@pytest.mark.parametrize(
    "normalizer", [None, normalizers.Lowercase(), normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()])]
)
def test_decomposed_text_gets_the_tokens_of_composed_text(tmp_path, normalizer):
    published = a_tokenizer(tmp_path / "tokenizer.json", normalizer)
    write_composing(tmp_path / "tokenizer.json", tmp_path / "ours.json")
    ours = Tokenizer.from_file(str(tmp_path / "ours.json"))
    differ = 0
    for text in BANK:
        composed, decomposed = unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)
        assert ours.encode(composed).ids == published.encode(composed).ids
        assert ours.encode(decomposed).ids == published.encode(composed).ids
        differ += published.encode(decomposed).ids != published.encode(composed).ids
    assert differ > len(BANK) / 4  # else this shows nothing


@pytest.mark.parametrize(
    "first", [normalizers.NFC(), normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])]
)
def test_a_tokenizer_that_composes_is_copied_byte_for_byte(tmp_path, first):
    a_tokenizer(tmp_path / "tokenizer.json", first)
    write_composing(tmp_path / "tokenizer.json", tmp_path / "ours.json")
    assert (tmp_path / "ours.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"normalizer": 3}', b'{"normalizer": {"type": "Sequence"}}'])
def test_what_is_no_tokenizer_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_bytes(text)
    with pytest.raises(ModelError, match="is not a tokenizer"):
        write_composing(tmp_path / "tokenizer.json", tmp_path / "ours.json")
