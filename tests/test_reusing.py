"""Rows of earlier builds: what they hold is not encoded again, and the result is that of encoding everything."""

import json
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.index import build as building
from xqg_vdb.index.encode import encode_corpus
from xqg_vdb.testing import HashEncoder
from xqg_vdb.texts.queries import QueryFile

LANGS = ["sw", "ha", "yo"]
words = st.lists(st.sampled_from(["maji", "mto", "nile", "jua", "water"]), min_size=1, max_size=3).map(" ".join)


@st.composite
def corpora(draw):
    """Three states of one corpus: id -> (text, queries by language). Small pools, so that much stays as it was."""
    ids = st.sampled_from([f"p{i}" for i in range(8)])
    queries = st.dictionaries(st.sampled_from(LANGS), st.lists(words, min_size=1, max_size=2), max_size=2)
    rows = st.dictionaries(ids, st.tuples(st.sampled_from(["one", "two"]), queries), min_size=1)
    first, second, now = draw(rows), draw(rows), draw(rows)
    for old in (first, second):  # as months go by: most is what it was
        now.update({key: old[key] for key in draw(st.sets(st.sampled_from(sorted(old))))})
    return first, second, now


def write(folder, name, corpus):
    """The corpus and its queries as files."""
    files = folder / f"{name}.jsonl", folder / f"{name}.queries.jsonl"
    lines = [{"id": key, "text": text, "lang": "en"} for key, (text, _) in corpus.items()]
    queries = [{"id": key, "generated_queries": asked} for key, (_, asked) in corpus.items() if asked]
    for file, records in zip(files, (lines, queries), strict=True):
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return files


def keep(files, path, *, reuse=(), encoder=None):
    """(build, how many were reused, how many texts were encoded)"""
    encoder = encoder or HashEncoder(dim=8)
    with ExitStack() as stack:
        queries = stack.enter_context(QueryFile([files[1]])) if files[1].read_text() else None
        kept = encode_corpus(files[0], encoder=encoder, queries=queries, path=path, reuse=reuse)
    return kept[0], kept[2], encoder.texts_seen


def needed(now, *earlier):
    """How many texts must be encoded, and how many passages need not be: one row at a time, as the rule says."""
    texts = reused = 0
    for key, (text, queries) in now.items():
        then = [old[key] for old in earlier if key in old and old[key][0] == text]
        if (text, queries) in then:
            reused += 1
            continue
        texts += sum(map(len, queries.values()))
        if any(not asked for _, asked in then):
            reused += 1
        else:
            texts += 1
    return texts, reused


@given(corpora(), st.sampled_from([2, 512]))
@settings(max_examples=30, deadline=None)
def test_a_build_with_reuse_is_the_build_without(tmp_path_factory, states, window):
    folder = tmp_path_factory.mktemp("reuse")
    first, second, now = states
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "WINDOW", window)
        for name, corpus in (("first", first), ("second", second)):
            keep(write(folder, name, corpus), folder / name)
        files = write(folder, "now", now)
        expected, none, _ = keep(files, folder / "whole")
        found, reused, texts = keep(files, folder / "reused", reuse=[folder / "first", folder / "second"])
    assert none == 0
    assert (texts, reused) == needed(now, first, second)
    assert found.rows == expected.rows == len(now)
    for one, other in zip(found.windows(), expected.windows(), strict=True):
        assert one.ids == other.ids and one.sums.keys() == other.sums.keys()
        np.testing.assert_array_equal(one.digests, other.digests)
        np.testing.assert_array_equal(one.passages, other.passages)
        for lang in other.sums:
            np.testing.assert_array_equal(one.sums[lang][0], other.sums[lang][0])
            np.testing.assert_array_equal(one.sums[lang][1], other.sums[lang][1])


def test_queries_that_come_later_leave_the_passages_encoded(tmp_path):
    bare = {"a": ("one", {}), "b": ("two", {})}
    keep(write(tmp_path, "bare", bare), tmp_path / "bare")
    asked = {"a": ("one", {"sw": ["maji", "mto"]}), "b": ("two", {})}
    _, reused, texts = keep(write(tmp_path, "asked", asked), tmp_path / "asked", reuse=[tmp_path / "bare"])
    assert (reused, texts) == (2, 2)


def test_vectors_of_another_encoder_are_refused_before_anything_is_made(tmp_path):
    files = write(tmp_path, "one", {"a": ("one", {})})
    keep(files, tmp_path / "old")
    other = HashEncoder(dim=8, name="another")
    with pytest.raises(MismatchError, match="leave out --reuse"):
        keep(files, tmp_path / "new", reuse=[tmp_path / "old"], encoder=other)
    assert other.texts_seen == 0
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_no_build_is_named(tmp_path):
    files = write(tmp_path, "one", {"a": ("one", {})})
    with pytest.raises(DataError, match="nothing"):
        keep(files, tmp_path / "new", reuse=[tmp_path / "nothing"])
