"""One body of tests for all stores: embedded, the client's in-memory mode, and a real server when there is one."""

from __future__ import annotations

import contextlib
import copy
import datetime
import math
import os
import pickle
import subprocess
import sys
import threading
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from collection_cases import DIM, a_batch, a_card, finished, load, passages, slow_search, vectors
from fake_qdrant import FakeQdrant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rankings import assert_same, scored

from xqg_vdb.errors import CorruptError, DataError, MismatchError, XqgError
from xqg_vdb.search.retriever import Collection
from xqg_vdb.store import open_store
from xqg_vdb.store.embedded import engine
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.gate import MAX_POINT_BYTES, Rows, checked, to_publish
from xqg_vdb.store.layout import check_name, digest, point_id
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.types import Bm25Settings, Passage, PointBatch, Search, SparseVector

SERVER = os.environ.get("XQG_TEST_QDRANT_URL")


@pytest.fixture(params=["embedded", "memory", "http", "server"])
def store(request, tmp_path):
    if request.param == "server" and not SERVER:
        pytest.skip("XQG_TEST_QDRANT_URL is not set")
    with contextlib.ExitStack() as stack:
        if request.param == "embedded":
            opened = EmbeddedStore(tmp_path / "store")
        elif request.param == "http":  # the same requests as to a real server, answered by the in-memory mode
            opened = ServerStore.connect(stack.enter_context(FakeQdrant()).url)
        else:
            key = os.environ.get("XQG_TEST_QDRANT_API_KEY")
            opened = (
                ServerStore.connect(":memory:")
                if request.param == "memory"
                else ServerStore.connect(SERVER, api_key=key)
            )
        yield stack.enter_context(opened)


@pytest.fixture
def name(store):
    chosen = f"test-{uuid.uuid4().hex[:12]}"
    yield chosen
    with contextlib.suppress(XqgError):
        store.delete(chosen)


def ids(answers):
    return [[hit.id for hit in hits] for hits in answers]


def search(store, name, questions, *, k=10, langs=None, exact=True, using="text-dense"):
    return store.search(name, questions, Search(k, langs, using, exact))


# what is stored and found


def test_search_agrees_with_a_sort_over_all_scores(store, name):
    rows, matrix = passages(300), vectors(300)
    load(store, name, rows, matrix, card=a_card())
    questions = vectors(30, seed=1)
    for langs in (None, ["sw"], ["sw", "yo"]):
        wanted = slow_search(rows, matrix, questions, k=10, langs=langs)
        for exact in (True, False):
            found = search(store, name, questions, langs=langs, exact=exact)
            for hits, answer in zip(found, wanted, strict=True):
                assert_same(scored(hits), answer)
    hit = search(store, name, matrix[7:8], k=1)[0][0]
    assert (hit.id, hit.text, hit.title, hit.lang, hit.meta) == ("p00007", "text 7", "title 7", "sw", {"n": 7})
    assert store.count(name) == 300
    assert store.count(name, passage_langs=["yo"]) == 100
    assert ids(search(store, name, questions[:1], k=1000))[0].__len__() == 300


def test_equal_scores_are_ordered_by_id_also_at_the_cut(store, name):
    # ±1/4 in 16 dimensions: all lengths are 1 and all scores multiples of 1/8, so that ties are exact everywhere
    signs = np.random.default_rng(5).choice([-0.25, 0.25], size=(300, DIM)).astype(np.float32)
    matrix = signs[np.arange(300) % 60]
    rows = passages(300)
    order = np.random.default_rng(6).permutation(300)
    load(store, name, [rows[i] for i in order], matrix[order], card=a_card())
    questions = signs[:20]
    wanted = slow_search(rows, matrix, questions, k=7)
    assert ids(search(store, name, questions, k=7)) == [[docid for docid, _ in answer] for answer in wanted]


def test_scroll_gives_every_point_once_with_its_vectors(store, name):
    rows, matrix = passages(1100), vectors(1100)
    load(store, name, rows, matrix, card=a_card(), batch=500)
    points = list(store.scroll(name, with_vectors=True))
    assert sorted(point.id for point in points) == [p.id for p in rows]
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    for point in points[::50]:
        row = int(point.id[1:])
        assert point.payload["meta"] == {
            "lang": rows[row].lang,
            "title": f"title {row}",
            "query_langs": ["sw"],
            "n": row,
        }
        assert np.allclose(point.vectors["text-dense"], unit[row], atol=1e-6)
    assert digest((p.id, p.payload["content"]) for p in store.scroll(name)) == store.card(name).digest


def test_the_card_comes_back_and_the_facade_says_the_same(store, name):
    card = replace(a_card(), query_langs=("sw",), query_means={"sw": "AAAA"}, calibration=0.8)
    rows, matrix = passages(10), vectors(10)
    load(store, name, rows, matrix, card=card)
    stored = store.card(name)
    assert stored == replace(finished(card, rows), version="v0001", created=stored.created)
    assert datetime.datetime.fromisoformat(stored.created).tzinfo is not None
    collection = Collection(name, store)
    assert collection.card == stored
    assert collection.count(passage_langs=["en"]) == 4
    assert ids(collection.nearest(matrix[:2], Search(1))) == [["p00000"], ["p00001"]]
    assert len(list(collection.scroll())) == 10
    assert name in store.names()


def test_dot_product_is_not_normalised(store, name):
    matrix = np.zeros((2, DIM), np.float32)
    matrix[0, 0], matrix[1, 0] = 3, 1
    load(store, name, passages(2), matrix, card=a_card(distance="dot"))
    question = np.zeros((1, DIM), np.float32)
    question[0, 0] = 2
    assert [hit.score for hit in search(store, name, question)[0]] == [6, 2]


def test_several_vectors_per_point(store, name):
    card = replace(a_card(), vectors=("text-dense", "text-dense-plain"))
    one, two = vectors(20), vectors(20, seed=1)
    with store.writer(name, card=card) as writer:
        with pytest.raises(MismatchError, match="The batch has vectors"):
            writer.upsert(a_batch(passages(20), one))
        writer.upsert(PointBatch(passages(20), {"text-dense": one, "text-dense-plain": two}, [()] * 20))
        writer.publish(replace(card, count=20))
    assert ids(search(store, name, two[3:4], k=1, using="text-dense-plain")) == [["p00003"]]
    assert ids(search(store, name, one[3:4], k=1)) == [["p00003"]]


# versions


def test_a_second_load_replaces_the_first_in_one_step(store, name):
    load(store, name, passages(30), vectors(30), card=a_card())
    with store.writer(name, card=a_card(alpha=0.5)) as writer:
        writer.upsert(a_batch(passages(20, tag="new "), vectors(20)))
        writer.commit(20)
        assert store.count(name) == 30  # readers see the old one until the end
        writer.publish(replace(a_card(alpha=0.5), count=20))
    assert store.count(name) == 20
    assert store.card(name).version == "v0002"
    assert search(store, name, vectors(1), k=1)[0][0].text == "text new 0"
    load(store, name, passages(5), vectors(5), card=a_card())
    assert store.card(name).version == "v0003"
    assert store.count(name) == 5


def test_a_stopped_load_continues_after_its_last_commit(store, name):
    rows, matrix = passages(50), vectors(50)
    with store.writer(name, card=a_card()) as writer:
        assert writer.committed == 0
        writer.upsert(a_batch(rows[:20], matrix[:20]))
        writer.commit(20)
        writer.upsert(a_batch(rows[20:30], matrix[20:30]))
    assert name not in store.names()
    with pytest.raises(DataError, match="is not finished: run the load again"):
        store.count(name)
    with store.writer(name, card=replace(a_card(), calibration=0.5)) as writer:  # not part of what makes points equal
        assert writer.committed == 20
    load(store, name, rows, matrix, card=a_card())
    assert store.count(name) == 50
    assert store.card(name).version == "v0001"


@pytest.mark.parametrize(
    "other",
    [
        a_card(fingerprint="beef"),
        a_card(alpha=0.4),
        a_card(distance="dot"),
        replace(a_card(), query_means={"sw": "AAAA"}),
        replace(a_card(), rows_digest="another corpus"),
        replace(a_card(), vectors=("text-dense", "more")),
    ],
)
def test_another_build_starts_a_new_version(store, name, other):
    with store.writer(name, card=a_card()) as writer:
        writer.upsert(a_batch(passages(20), vectors(20)))
        writer.commit(20)
    with store.writer(name, card=other) as writer:
        assert writer.committed == 0
    with store.writer(name, card=a_card()) as writer:
        assert writer.committed == 0  # the first one is gone


def test_a_wrong_count_is_not_published_and_the_next_run_starts_over(store, name):
    with store.writer(name, card=a_card()) as writer:
        writer.upsert(a_batch(passages(20), vectors(20)))
        writer.commit(20)
        with pytest.raises(CorruptError, match="holds 20 points, 21 were expected"):
            writer.publish(replace(a_card(), count=21))
    assert name not in store.names()
    with store.writer(name, card=a_card()) as writer:
        assert writer.committed == 0


def test_publishing_another_build_is_refused(store, name):
    with store.writer(name, card=a_card()) as writer, pytest.raises(MismatchError, match="another build"):
        writer.publish(a_card(alpha=0.9))


def test_delete_removes_all_versions(store, name):
    load(store, name, passages(5), vectors(5), card=a_card())
    store.count(name)
    store.delete(name)
    assert name not in store.names()
    with pytest.raises(DataError, match="There is no collection"):
        store.delete(name)
    load(store, name, passages(6), vectors(6), card=a_card())
    assert store.count(name) == 6


# refusals


def test_a_missing_collection_names_the_near_ones(store, name):
    load(store, name, passages(3), vectors(3), card=a_card())
    with pytest.raises(DataError, match=f"There is no collection '{name}x' in .*Did you mean {name}"):
        store.count(name + "x")
    for call in (store.card, store.delete, lambda n: search(store, n, vectors(1)), lambda n: next(store.scroll(n))):
        with pytest.raises(DataError, match="There is no collection"):
            call("qqq")


@pytest.mark.parametrize(
    "bad", ["", ".", "..", ".hidden", "a/b", "a\\b", "a b", "ä", "a" * 129, "a\0", "wiki__v0001", "a\n"]
)
def test_names_that_could_leave_the_store_are_refused(store, bad):
    for call in (store.card, store.count, store.delete, lambda n: store.writer(n, card=a_card())):
        with pytest.raises(DataError, match="cannot name a collection"):
            call(bad)
    with pytest.raises(DataError, match="cannot name a collection"):
        next(store.scroll(bad))


def test_questions_that_do_not_fit_are_refused(store, name):
    load(store, name, passages(3), vectors(3), card=a_card())
    with pytest.raises(MismatchError):
        search(store, name, vectors(1, dim=7))
    with pytest.raises(MismatchError):
        search(store, name, vectors(1), using="nope")
    with pytest.raises(DataError, match="NaN or infinity"):
        search(store, name, np.full((1, DIM), np.nan, np.float32))
    with pytest.raises(DataError, match="matrix"):
        search(store, name, vectors(1)[0])
    with pytest.raises(DataError, match="k must be"):
        search(store, name, vectors(1), k=0)
    for langs in ("en", []):
        with pytest.raises(DataError, match="langs must be a list"):
            search(store, name, vectors(1), langs=langs)
    assert search(store, name, vectors(0)) == []
    assert search(store, name, vectors(1), langs=["xx"]) == [[]]


def test_nothing_of_a_bad_batch_is_written(store, name):
    rows, matrix = passages(10), vectors(10)
    matrix[9, 3] = np.nan
    with store.writer(name, card=a_card()) as writer:
        with pytest.raises(DataError, match="Passage 'p00009' cannot be stored"):
            writer.upsert(a_batch(rows, matrix))
        writer.upsert(a_batch(rows[:5], matrix[:5]))
        writer.publish(replace(a_card(), count=5))
    assert store.count(name) == 5


def test_a_closed_writer_says_so(store, name):
    writer = store.writer(name, card=a_card())
    writer.close()
    writer.close()
    with pytest.raises(XqgError, match="writer is closed"):
        writer.upsert(a_batch(passages(1), vectors(1)))


def test_a_batch_without_passages_asks_nothing_of_the_store(store, name):
    with store.writer(name, card=a_card()) as writer:
        writer.upsert(a_batch([], vectors(0)))
        writer.upsert(a_batch(passages(5), vectors(5)))
        writer.upsert(a_batch([], vectors(0)))
        writer.commit(5)
        writer.publish(finished(a_card(), passages(5)))
    assert store.count(name) == 5


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_store_that_is_sent_to_another_process_says_what_to_do_there(store, copied):
    with pytest.raises(DataError, match=r"cannot be pickled or copied: .*each process: open_store\(…\)"):
        copied(store)


def test_many_threads_share_a_store(store, name):
    rows, matrix = passages(200), vectors(200)
    load(store, name, rows, matrix, card=a_card())
    wrong = []

    def ask(seed):
        for row in np.random.default_rng(seed).integers(0, 200, 30):
            if ids(search(store, name, matrix[row : row + 1], k=1)) != [[f"p{row:05d}"]]:
                wrong.append(row)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# the gate, without a store


def deep(levels):
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


GOOD = Passage("a", "text")
GATE = [
    (replace(GOOD, id=""), "its id must be a non-empty string without NUL"),
    (replace(GOOD, id=7), "its id must be a non-empty string without NUL"),
    (replace(GOOD, id=True), "its id must be a non-empty string without NUL"),
    (replace(GOOD, id="a\0b"), "its id must be a non-empty string without NUL"),
    (replace(GOOD, id="\ud800"), "it is not valid Unicode"),
    (replace(GOOD, text=""), "its text is blank"),
    (replace(GOOD, text=" \n\u3000"), "its text is blank"),
    (replace(GOOD, text=None), "its text is blank"),
    (replace(GOOD, text="a\udfff"), "it is not valid Unicode"),
    (replace(GOOD, title=None), "its title must be a string, found NoneType"),
    (replace(GOOD, lang=""), "its language must be a non-empty string"),
    (replace(GOOD, meta={"x": math.nan}), "field 'x': nan is not a JSON number"),
    (replace(GOOD, meta={"x": [math.inf]}), "field 'x': inf is not a JSON number"),
    (replace(GOOD, meta={"x": 2**63}), "field 'x': an integer does not fit in 64 bits"),
    (replace(GOOD, meta={"x": {"y": -(2**63) - 1}}), "field 'x': an integer does not fit in 64 bits"),
    (replace(GOOD, meta={"x": datetime.date(2026, 1, 1)}), "field 'x': a date is not a JSON value"),
    (replace(GOOD, meta={"x": b"bytes"}), "field 'x': a bytes is not a JSON value"),
    (replace(GOOD, meta={"x": np.float32(1)}), "field 'x': a float32 is not a JSON value"),
    (replace(GOOD, meta={"x": {1: 2}}), "field 'x': the key 1 is not a string"),
    (replace(GOOD, meta={1: 2}), "the field name 1 is not a string"),
    (replace(GOOD, meta={"x\ud800": 2}), "it is not valid Unicode"),
    (replace(GOOD, meta={"lang": "en"}), "the field name 'lang' is reserved"),
    (replace(GOOD, meta={"x": deep(31)}), "field 'x': nested more than 32 levels deep"),
    (replace(GOOD, meta={"x": deep(100_000)}), "field 'x': nested more than 32 levels deep"),
    (replace(GOOD, meta={"x": "a" * (1 << 20)}), "more than 1,048,576; split the passage"),
]


@pytest.mark.parametrize(("passage", "reason"), GATE)
def test_the_gate_names_the_passage_and_the_reason(passage, reason):
    rows = [replace(GOOD, id="fine"), passage]
    with pytest.raises(DataError) as caught:
        checked(a_batch(rows, vectors(2)), card=a_card())
    assert str(caught.value).startswith(f"Passage {passage.id!r} cannot be stored: ")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "holds NaN or infinity"),
        (np.inf, "holds NaN or infinity"),
        (-np.inf, "holds NaN or infinity"),
        (0.0, "is all zeros"),
        (1e-30, "is all zeros"),
        (1e30, "is too long"),
    ],
)
def test_the_gate_stops_vectors_that_no_search_would_find(value, reason):
    matrix = vectors(3)
    matrix[1] = value
    with pytest.raises(DataError, match=f"Passage 'p00001' cannot be stored: its vector 'text-dense' {reason}"):
        checked(a_batch(passages(3), matrix), card=a_card())


def test_the_gate_stops_matrices_that_are_not_the_collections():
    wrong = [vectors(3).astype(np.float64), vectors(3, dim=DIM + 1), vectors(2), vectors(3).tolist(), vectors(3)[0]]
    for matrix in wrong:
        with pytest.raises(MismatchError, match=r"must be float32 \(3, 16\), found"):
            checked(a_batch(passages(3), matrix), card=a_card())
    with pytest.raises(DataError, match="3 passages but 2 entries"):
        checked(PointBatch(passages(3), {"text-dense": vectors(3)}, [(), ()]), card=a_card())
    with pytest.raises(DataError, match="its query languages must be a list of strings"):
        checked(PointBatch(passages(1), {"text-dense": vectors(1)}, ["sw"]), card=a_card())


def test_the_gate_stops_an_id_that_comes_twice():
    rows = [*passages(3), replace(GOOD, id="p00001")]
    with pytest.raises(DataError, match="Passage 'p00001' cannot be stored: its id comes twice in one batch"):
        checked(a_batch(rows, vectors(4)), card=a_card())


def test_the_gate_passes_what_is_on_the_edge():
    edge = {
        "x": deep(30),
        "big": 2**63 - 1,
        "small": -(2**63),
        "none": None,
        "yes": True,
        "t": (1, (2.5,)),
        "nul": "a\0",
    }
    rows = checked(a_batch([replace(GOOD, meta=edge)], vectors(1)), card=a_card())
    assert rows.payloads[0]["meta"] == {"lang": "und", "title": "", "query_langs": ["sw"], **edge, "t": [1, [2.5]]}
    assert rows.ids == [point_id("a")]
    checked(a_batch([GOOD], np.full((1, DIM), 1e-3, np.float32)), card=a_card())


def test_the_gate_counts_bytes_to_the_last_one():
    card = replace(a_card(), vectors=("text-dense", "text-dense-plain"), bm25=Bm25Settings())
    matrices = dict.fromkeys(card.vectors, vectors(2))
    words = [SparseVector(np.arange(n, dtype=np.uint32), np.ones(n, np.float32)) for n in (0, 3)]
    batch = PointBatch([GOOD, replace(GOOD, id="b")], matrices, [(), ("sw",)], sparse=words, rows=["", "ab" * 8])
    rows = checked(batch, card=card)
    assert [payload.get("row") for payload in rows.payloads] == [None, "ab" * 8]
    payloads = [len(orjson.dumps(payload)) for payload in rows.payloads]
    assert rows.sizes == [payloads[0] + 4 * DIM * 2, payloads[1] + 4 * DIM * 2 + 3 * (4 + 4)]
    assert checked(a_batch([], vectors(0)), card=a_card()) == Rows([], [], [])
    room = MAX_POINT_BYTES - len(orjson.dumps(checked(a_batch([GOOD], vectors(1)), card=a_card()).payloads[0]))
    fits = replace(GOOD, text=GOOD.text + "x" * room)
    assert checked(a_batch([fits], vectors(1)), card=a_card()).sizes == [MAX_POINT_BYTES + 4 * DIM]
    with pytest.raises(DataError, match=r"it takes 1,048,577 bytes, more than 1,048,576; split the passage"):
        checked(a_batch([replace(fits, text=fits.text + "x")], vectors(1)), card=a_card())


@pytest.mark.parametrize(
    ("value", "passes"),
    [
        ({"a": deep(29)}, True),
        ({"a": deep(30)}, False),
        ([[{"a": {"b": deep(26)}}]], True),
        ([[{"a": {"b": deep(27)}}]], False),
        (type("Text", (str,), {})("a str of another kind"), False),
        ({"a": type("Whole", (int,), {})(1)}, False),
        ({"a", "b"}, False),
    ],
)
def test_the_gate_counts_levels_and_takes_plain_types_alone(value, passes):
    batch = a_batch([replace(GOOD, meta={"x": value})], vectors(1))
    with contextlib.nullcontext() if passes else pytest.raises(DataError, match=r"field 'x': (nested|a \w+ is not a)"):
        assert checked(batch, card=a_card()).payloads[0]["meta"]["x"] == value


def test_the_gate_wants_what_the_card_promises():
    for names in ((), ("text-dense-plain",), ("text-dense", "text-dense-plain")):
        with pytest.raises(MismatchError, match=r"The batch has vectors \[.*\], the collection \['text-dense'\]"):
            checked(PointBatch(passages(2), dict.fromkeys(names, vectors(2)), [(), ()]), card=a_card())
    with pytest.raises(MismatchError, match="found list"):
        checked(PointBatch(passages(1), {"text-dense": [[1.0] * DIM]}, [()]), card=a_card())
    with pytest.raises(MismatchError, match=r"found float64 \(1, 16\)"):
        checked(PointBatch(passages(1), {"text-dense": vectors(1).astype(float)}, [()]), card=a_card())
    for langs in ("sw", [1], [None, "sw"]):
        with pytest.raises(DataError, match="its query languages must be a list of strings"):
            checked(PointBatch([GOOD], {"text-dense": vectors(1)}, [langs]), card=a_card())
    with pytest.raises(DataError, match="its language must be a non-empty string"):
        checked(a_batch([replace(GOOD, lang=None)], vectors(1)), card=a_card())
    long = np.full((1, DIM), 1e19, np.float32)  # its square is no float32
    with pytest.raises(DataError, match="is too long to be compared"):
        checked(a_batch([GOOD], long), card=a_card())


def test_a_version_is_published_as_it_was_loaded():
    loaded = replace(a_card(), storage={"on_disk": True})
    made = to_publish(replace(a_card(), count=3), loaded, version="v0002")
    assert (made.version, made.count, made.storage) == ("v0002", 3, loaded.storage)
    now = datetime.datetime.now(datetime.UTC)
    assert abs(datetime.datetime.fromisoformat(made.created) - now) < datetime.timedelta(minutes=5)
    assert to_publish(replace(made, created="then"), loaded, version="v0003").created == "then"
    with pytest.raises(MismatchError, match="describes another build"):
        to_publish(a_card(alpha=0.4), loaded, version="v0002")


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=10,
)
metas = st.dictionaries(words.filter(lambda key: key not in ("lang", "title", "query_langs")), values, max_size=4)


@pytest.fixture
def filled(store, name):
    """Writes passages into one open version and reads their payloads back: a version per example takes a minute."""
    with store.writer(name, card=a_card()) as writer:

        def write_and_read(rows):
            writer.upsert(a_batch(rows, vectors(len(rows))))
            if isinstance(store, ServerStore):
                writer._await()
                return [
                    record.payload for record in store._client.scroll(writer._version, limit=100, with_payload=True)[0]
                ]
            return [payload for payload, _ in engine.scroll(writer._shard, with_vectors=False)]

        yield write_and_read


def same(one, other):
    """Equal, types included; the embedded engine reads some floats back one unit in the last place off."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return math.isclose(one, other, rel_tol=1e-15) if isinstance(one, float) else one == other


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(st.tuples(words.filter(str.strip), words, metas), min_size=1, max_size=8))
def test_payloads_come_back_as_they_were(filled, data):
    rows = [Passage(f"{i}", text, title=title, meta=meta) for i, (text, title, meta) in enumerate(data)]
    found = {payload["id"]: payload for payload in filled(rows)}
    for p in rows:
        meta = {"lang": "und", "title": p.title, "query_langs": ["sw"], **p.meta}
        assert same(found[p.id], {"id": p.id, "content": p.text, "meta": meta})


# names, digests, choosing a store


def test_point_ids_never_change():
    assert str(point_id("p00000")) == "19762186-ce7c-5bad-abf1-b5aedf69fbad"
    assert check_name("wiki.2026_v1-a") == "wiki.2026_v1-a"


def test_the_digest_ignores_order_and_sees_everything_else():
    pairs = [("a", "x"), ("b", "y"), ("c", "z")]
    assert digest(pairs) == digest(reversed(pairs))
    others = [pairs[:2], [*pairs, ("a", "x")], [("a", "y"), ("b", "x"), ("c", "z")], [("ax", ""), *pairs[1:]]]
    assert len({digest(other) for other in [pairs, *others]}) == 5
    assert digest([]) == "0" * 32


def test_open_store_chooses_by_argument_then_environment(tmp_path, monkeypatch):
    for variable in ("XQG_VDB_URL", "XQG_VDB_PATH", "XQG_VDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    assert repr(open_store()) == "EmbeddedStore('xqg-data')"
    assert repr(open_store(tmp_path)) == f"EmbeddedStore({str(tmp_path)!r})"
    monkeypatch.setenv("XQG_VDB_PATH", "elsewhere")
    assert repr(open_store()) == "EmbeddedStore('elsewhere')"
    monkeypatch.setenv("XQG_VDB_URL", ":memory:")
    with open_store() as store:
        assert repr(store) == "ServerStore(':memory:')"
    assert repr(open_store(tmp_path)) == f"EmbeddedStore({str(tmp_path)!r})"
    with open_store(url="http://localhost:1") as store:
        assert repr(store) == "ServerStore('localhost:1')"
    with pytest.raises(ValueError, match="not both"):
        open_store(tmp_path, url=":memory:")


def test_importing_the_package_loads_neither_engine():
    code = "import sys, xqg_vdb.store; print({'qdrant_edge', 'qdrant_client', 'httpx'} & set(sys.modules))"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
