"""`add` and `delete` in a published collection, against a dict and numpy; stopped anywhere, on either store.

Set XQG_TEST_QDRANT_URL to run it on a real server.
"""

import contextlib
import os
import shutil
import threading
import uuid
from dataclasses import replace
from pathlib import Path

import killing
import numpy as np
import pytest
from cli_cases import write_lines
from collection_cases import STORES, opened
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xqg_vdb.calibration import LanguageMeans, unpack_means
from xqg_vdb.errors import CorruptError, DataError, LockedError, MismatchError, XqgError
from xqg_vdb.index.load import LoadOptions, load
from xqg_vdb.index.update import add, delete, since_load
from xqg_vdb.index.verify import verify
from xqg_vdb.search.retriever import Collection
from xqg_vdb.store.embedded import engine
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.layout import digest
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.testing import HashEncoder
from xqg_vdb.types import Hybrid, Recipe, Search

DIM = 16
PLAIN = Recipe(pool="mean", alpha=0.4)
"""Subtracts no mean, so that the vectors of a load of everything are those of a load and an add, to the bit."""


@pytest.fixture(params=STORES)
def store(request, tmp_path, monkeypatch):
    monkeypatch.setenv("XQG_VDB_CACHE", str(tmp_path / "cache"))
    with opened(request.param, tmp_path) as store:
        yield store


@pytest.fixture
def name(store):
    chosen = f"test-{uuid.uuid4().hex[:12]}"
    yield chosen
    with contextlib.suppress(XqgError):
        store.delete(chosen)


def an_encoder(name="hash"):
    rng = np.random.default_rng(7)
    means = {lang: (0.2 * rng.standard_normal(DIM)).astype(np.float32) for lang in ("sw", "ar")}
    return HashEncoder(
        dim=DIM, name=name, calibration=0.7, language_means=LanguageMeans(means, {"sw": 3, "ar": 40}, "bank")
    )


def passages(start, stop, *, tag=""):
    langs = ("en", "de", "sw")
    return [
        {
            "id": f"p{i:04d}",
            "title": f"title {i % 7}",
            "text": f"word{i} maji {tag}{i % 11}",
            "lang": langs[i % 3],
            "n": i,
        }
        for i in range(start, stop)
    ]


def queries(start, stop, *, tag=""):
    """Every third passage has none."""
    return [
        {"id": f"p{i:04d}", "generated_queries": {"sw": [f"swali {tag}{i}", f"maji {i}"], "ha": [f"tambaya {i}"]}}
        for i in range(start, stop)
        if i % 3
    ]


def points(store, name):
    """(payload, vectors, sparse) by id."""
    found = list(store.scroll(name, with_vectors=True))
    assert len({point.id for point in found}) == len(found)
    return {point.id: point for point in found}


def same(one, other, *, within=0.0):
    assert one.keys() == other.keys()
    for key, point in one.items():
        assert point.payload == other[key].payload
        for vector, row in point.vectors.items():
            np.testing.assert_allclose(row, other[key].vectors[vector], rtol=0, atol=within)


def check_card(store, name):
    """Count and digest are those of what is there, and nothing is pending."""
    card, there = store.card(name), points(store, name)
    assert (card.count, card.pending) == (len(there), {})
    assert card.digest == digest((point.id, point.payload["content"]) for point in there.values())
    assert store.count(name) == len(there)
    assert verify(store, name).problems == ()


def test_a_load_and_an_add_are_a_load_of_both(store, name):
    both, given = passages(0, 700), queries(0, 700)
    options = LoadOptions(keep_plain=True, hybrid=Hybrid("none"))
    whole = {"recipe": PLAIN, "store": store, "options": options}
    load(both, f"{name}-whole", encoder=an_encoder(), queries=given, **whole)
    try:
        load(both[:50], name, encoder=an_encoder(), queries=given, **whole)
        encoder = an_encoder()
        report = add(both[50:], name, encoder=encoder, queries=given, store=store)
        assert (report.added, report.replaced, report.unchanged, report.passages) == (650, 0, 0, 700)
        same(points(store, f"{name}-whole"), points(store, name))
        asked = encoder.encode_queries(["maji word3"], calibrate=False)
        # the card's words, of the first fifty passages, may weigh others than those of all
        assert store.search(name, asked, Search(5, exact=True)) == store.search(
            f"{name}-whole", asked, Search(5, exact=True)
        )
        check_card(store, name)
    finally:
        store.delete(f"{name}-whole")


def test_the_cards_means_and_recipe_apply_to_what_comes(store, name):
    """By the formula of the default recipe, a passage at a time in float64."""
    encoder = an_encoder()
    load(passages(0, 60), name, encoder=encoder, queries=queries(0, 60), store=store,
         options=LoadOptions(passage_calibration=0.5, force=True))  # fmt: skip
    card = store.card(name)
    add(passages(60, 90), name, encoder=encoder, queries=queries(60, 90), store=store)
    means = unpack_means(card.query_means, dim=DIM).means
    there = points(store, name)
    for passage in passages(60, 90):
        given = {q["id"]: q["generated_queries"] for q in queries(60, 90)}.get(passage["id"], {})
        row = encoder.encode_passages([f"{passage['title']} {passage['text']}"])[0].astype(np.float64)
        total, n = np.zeros(DIM), 0
        for lang, texts in given.items():
            for text in texts:
                total += encoder.encode_queries([text], calibrate=False)[0] - means[lang]
                n += 1
        fused = 0.7 * row + 0.3 * total / (n + 5)
        stored = there[passage["id"]].vectors["text-dense"]
        np.testing.assert_allclose(stored, fused / np.linalg.norm(fused), atol=2e-5)
        assert there[passage["id"]].payload["meta"]["query_langs"] == sorted(given)


def test_equal_content_changes_nothing_and_changed_content_replaces(store, name):
    collection = load(passages(0, 30), name, encoder=an_encoder(), queries=queries(0, 30), store=store).collection
    before, card, encoder = points(store, name), store.card(name), an_encoder()
    for given in (queries(0, 30), None):
        report = add(passages(0, 30), name, encoder=encoder, queries=given, store=store)
        assert (report.unchanged, report.added, report.replaced, encoder.texts_seen) == (30, 0, 0, 0)
    same(before, points(store, name))
    assert store.card(name) == card
    for changed, given in [
        ([{**passages(4, 5)[0], "text": "another text"}], queries(4, 5)),
        ([{**passages(4, 5)[0], "n": "another field"}], queries(4, 5)),
        (passages(4, 5), queries(4, 5, tag="other ")),
        (passages(4, 5), queries(4, 5)),
    ]:
        report = collection.add(changed, queries=given)
        assert (report.added, report.replaced, report.passages) == (0, 1, 30)
        check_card(store, name)
    same(before, points(store, name))
    report = collection.delete(["p0004", "p0005", "nobody", "p0004"])
    assert (report.deleted, report.missing, report.passages) == (2, ("nobody",), 28)
    assert collection.delete(["p0004"]).missing == ("p0004",)
    check_card(store, name)
    collection.add(passages(4, 6), queries=queries(4, 6))
    same(before, points(store, name))
    assert store.card(name).since_load["added"] == 2 and store.card(name).since_load["deleted"] == 2


def test_what_cannot_be_added_is_refused_and_changes_nothing(store, name):
    load(passages(0, 30), name, encoder=an_encoder(), queries=queries(0, 30), store=store)
    before, card = points(store, name), store.card(name)
    with pytest.raises(MismatchError, match="use that encoder"):
        add(passages(30, 31), name, encoder=an_encoder("other"), store=store)
    for strange, said in [
        ([{"id": "x"}], r"^Corpus record 1: no text .*; correct the data\.$"),
        ([], "^The corpus in memory holds no passage"),
        ({"id": "x", "text": "a"}, "A record must be a dict"),
        ([("x", "a")], "A record must be a dict"),
    ]:
        with pytest.raises(DataError, match=said):
            add(strange, name, encoder=an_encoder(), store=store)
    for strange, said in [
        ([None], "An id is a text or a whole number, not None"),
        (["p0001", "\ud800"], "An id is a text"),
    ]:
        with pytest.raises(DataError, match=said):
            delete(strange, name, store=store)
    assert delete([7], name, store=store).missing == ("7",)
    with pytest.raises(DataError, match=r"takes .* bytes, more than"):
        add([{"id": "x", "text": "a", "more": "b" * (1 << 20)}], name, encoder=an_encoder(), store=store)
    with pytest.raises(DataError, match="There is no collection"):
        delete(["p0001"], f"{name}-not", store=store)
    same(before, points(store, name))
    assert store.card(name).pending == {} and store.card(name).count == card.count
    even = [{"id": f"p{i:04d}", "generated_queries": {"sw": ["swali"]}} for i in range(30)]
    load(passages(0, 30), name, encoder=an_encoder(), queries=even, recipe=Recipe(pool="sum"), store=store)
    with pytest.raises(MismatchError, match="--pool shrunk"):
        add(passages(30, 31), name, encoder=an_encoder(), store=store)


def test_a_load_after_an_add_is_written(store, name):
    given = {"encoder": an_encoder(), "store": store}
    assert not load(passages(0, 30), name, **given).report.unchanged
    add(passages(30, 31), name, **given)
    report = load(passages(0, 30), name, **given).report
    assert not report.unchanged and "(31 passages" in report.replaced and store.count(name) == 30
    assert load(passages(0, 30), name, **given).report.unchanged
    assert since_load(store.card(name)) == ""


def test_searches_see_the_old_or_the_new_of_each_point(store, name):
    load(passages(0, 40), name, encoder=an_encoder(), store=store)
    asked = an_encoder().encode_queries(["maji"], calibrate=False)
    wrong, ended = [], threading.Event()

    def search():
        while not ended.is_set():
            hits = store.search(name, asked, Search(40, exact=True))[0]
            if sorted(hit.id for hit in hits) != [f"p{i:04d}" for i in range(40)]:
                wrong.append([hit.id for hit in hits])

    with contextlib.ExitStack() as stack:
        thread = threading.Thread(target=search)
        thread.start()
        stack.callback(thread.join)
        stack.callback(ended.set)
        for round_ in range(6):
            assert add(passages(0, 40, tag=f"{round_}x"), name, encoder=an_encoder(), store=store).replaced == 40
    assert wrong == []


def test_what_came_is_said_and_when_a_load_is_worth_it(store, name):
    load(passages(0, 100), name, encoder=an_encoder(), queries=queries(0, 100), store=store)
    assert since_load(store.card(name)) == verify(store, name).since_load == ""
    add(passages(100, 110), name, encoder=an_encoder(), queries=queries(100, 110), store=store)
    assert since_load(store.card(name)) == "10 added"  # too few queries to speak of their mean
    add(passages(110, 200), name, encoder=an_encoder(), queries=queries(110, 200), store=store)
    delete(["p0001"], name, store=store)
    said = verify(store, name).since_load
    assert said.startswith("100 added, 1 deleted; the mean of queries ")
    assert said.endswith("; a new load is worth it: language means are those of the load")


def test_verify_compares_what_the_load_left_with_its_build(store, name, tmp_path):
    options = LoadOptions(build=tmp_path / "build")
    load(passages(0, 60), name, encoder=an_encoder(), queries=queries(0, 60), store=store, options=options)
    add(passages(50, 70, tag="new "), name, encoder=an_encoder(), queries=queries(50, 70), store=store)
    found = verify(store, name, build=tmp_path / "build")
    assert found.problems == () and found.compared == 50


class Stopped(Exception):
    pass


@contextlib.contextmanager
def stopped_at(store, number):
    """The `number`-th thing that an update does to the store does not happen."""
    real, left = store.update, [number]

    @contextlib.contextmanager
    def update(name):
        with real(name) as held:
            yield Stopping(held)

    class Stopping:
        def __init__(self, held):
            self.held = held

        def __getattr__(self, what):
            if what in ("upsert", "delete", "record"):
                left[0] -= 1
                if left[0] < 0:
                    raise Stopped
            return getattr(self.held, what)

    store.update = update
    try:
        yield
    finally:
        del store.update


@pytest.mark.parametrize("number", range(6))
def test_stopped_anywhere_the_same_call_again_ends_it(store, name, number, monkeypatch):
    monkeypatch.setattr("xqg_vdb.index.update.WINDOW", 16)
    load(passages(0, 40), name, encoder=an_encoder(), queries=queries(0, 40), recipe=PLAIN, store=store)
    for act in (
        lambda: add(passages(20, 60, tag="b"), name, encoder=an_encoder(), queries=queries(20, 60), store=store),
        lambda: delete([f"p{i:04d}" for i in range(10, 50)], name, store=store),
    ):
        with pytest.raises(Stopped), stopped_at(store, number):
            act()
        if store.card(name).pending:
            assert "make the same call again" in verify(store, name).problems[0]
        act()
        check_card(store, name)
    load(passages(50, 60, tag="b") + passages(0, 10), f"{name}-twin", encoder=an_encoder(), queries=queries(0, 60),
         recipe=PLAIN, store=store)  # fmt: skip
    try:
        same(points(store, name), points(store, f"{name}-twin"))
    finally:
        store.delete(f"{name}-twin")


@pytest.mark.parametrize("number", range(8))
def test_stopped_anywhere_documents_in_chunks_end_whole(store, name, number, monkeypatch):
    """One grows, one shrinks, one comes, one goes; a window holds all of a document."""
    monkeypatch.setattr("xqg_vdb.index.update.WINDOW", 4)

    def documents(**sentences):
        return [{"id": docid, "text": "Maji ya mto. " * n, "lang": "sw"} for docid, n in sentences.items()]

    before, after = documents(a=30, b=60, c=40, d=20), documents(a=60, b=30, c=40, e=50)
    whole = {"encoder": an_encoder(), "store": store, "options": LoadOptions(chunk="16:2")}
    load(before, name, **whole)
    for act in (
        lambda: add(after, name, encoder=an_encoder(), store=store),
        lambda: delete(["d"], name, store=store),
    ):
        with contextlib.suppress(Stopped), stopped_at(store, number):
            act()
        act()
        check_card(store, name)
    load(after, f"{name}-twin", **whole)
    try:  # the in-memory client's norms depend on the batch
        same(points(store, name), points(store, f"{name}-twin"), within=1e-6)
    finally:
        store.delete(f"{name}-twin")


def test_a_version_whose_update_was_stopped_comes_back(store, name):
    load(passages(0, 30), name, encoder=an_encoder(), store=store)
    with pytest.raises(Stopped), stopped_at(store, 2):  # the points are gone, and pending
        delete(["p0001", "p0002"], name, store=store)
    load(passages(0, 31), name, encoder=an_encoder(), store=store)
    before = store.admin.rollback(name)
    assert "make the same call again" in verify(store, name).problems[0]
    delete(["p0001", "p0002"], name, store=store)
    check_card(store, name)
    assert store.version(name) == before and store.count(name) == 28


def build_index_here(path, *, nice=0, began=None):
    shard = engine.load(path)
    shard.optimize()
    shard.close()


WORK = """
import json
import xqg_vdb.store.embedded.store
import xqg_vdb.index.update as updating
from test_updating import an_encoder

updating.WINDOW = 64
xqg_vdb.store.embedded.store._MOST_UNFLUSHED = 1

def work(path, what, corpus):
    store = xqg_vdb.store.embedded.store.EmbeddedStore(path, free_space_floor=0)
    if what == "add":
        updating.add(corpus, "wiki", encoder=an_encoder(), store=store)
    else:
        updating.delete([json.loads(line)["id"] for line in open(corpus)], "wiki", store=store)
    store.close()
"""
POINTS = [
    "os.rename */wiki/v*/card.json 1", "os.rename */wiki/v*/card.json 2", "os.rename */wiki/v*/card.json 3",
    "call EdgeShard.update 1", "call EdgeShard.update 2", "call sync_log 1", "call EdgeShard.flush 1",
    "call _EmbeddedUpdate.find 3",
]  # fmt: skip
KILLED = killing.Workers(WORK, os.devnull)


class Living(RuleBasedStateMachine):
    """Loads, adds, deletes, stops, kills, rollbacks, indexing, searches, against dicts of texts and numpy."""

    kind = "embedded"
    some = st.lists(st.integers(0, 11), max_size=8, unique=True)
    editions = st.sampled_from(["", "b", "c"])

    def __init__(self):
        super().__init__()
        self.folder = contextlib.ExitStack()
        import tempfile

        path = self.folder.enter_context(tempfile.TemporaryDirectory())
        os.environ["XQG_VDB_CACHE"] = f"{path}/cache"
        self.store = (
            EmbeddedStore(f"{path}/s", free_space_floor=0)
            if self.kind == "embedded"
            else ServerStore.connect(":memory:")
        )
        self.folder.enter_context(self.store)
        self.encoder, self.model, self.unsure = an_encoder(), {}, set()
        self.before = {}  # the models of other versions
        self.path = Path(path)
        patch = self.folder.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(engine, "build_index", build_index_here)  # a process of its own costs a second

    def teardown(self):
        self.folder.close()

    def texts(self, numbers, edition):
        return [passages(i, i + 1, tag=edition)[0] for i in numbers]

    @initialize(numbers=some, edition=editions)
    def load(self, numbers, edition):
        self.again(numbers or [0], edition)

    @rule(numbers=some.filter(bool), edition=editions)
    def again(self, numbers, edition):
        rows = self.texts(numbers, edition)
        if "wiki" in self.store.names():
            self.before[self.store.version("wiki")] = self.model
        load(rows, "wiki", encoder=self.encoder, store=self.store)
        self.model, self.unsure = {row["id"]: row for row in rows}, set()

    @precondition(lambda self: not self.unsure and len(self.store.admin.versions("wiki")) > 1)
    @rule()
    def rollback(self):
        self.before[self.store.version("wiki")] = self.model
        versions = {state.name: state for state in self.store.admin.versions("wiki") if state.finished}
        published = next(name for name, state in versions.items() if state.published)
        other = max(name for name in versions if name != published)
        assert self.store.admin.rollback("wiki", version=other) == other
        self.model = self.before[other]

    @precondition(lambda self: self.kind == "embedded")
    @rule()
    def optimise(self):
        with self.store.reading("wiki") as reader:
            reader.shard.optimize()

    @precondition(lambda self: self.kind == "embedded" and not self.unsure)
    @rule(numbers=some.filter(bool), edition=editions)
    def index(self, numbers, edition):
        """In the background, while something is added and deleted."""
        self.store.most_unindexed = 0
        self.add(numbers[:1], edition)
        self.store.most_unindexed = 1 << 40
        self.add(numbers, edition)
        self.delete(numbers[:1])
        self.store.indexed("wiki")

    @precondition(lambda self: self.model and not self.unsure)
    @rule(number=st.integers(0, 11), k=st.integers(1, 12))
    def search(self, number, k):
        row = self.encoder.encode_queries([f"word{number} maji"], calibrate=False)
        hits = self.store.search("wiki", row, Search(k, exact=True))[0]
        rows = self.encoder.encode_passages([f"{row['title']} {row['text']}" for row in self.model.values()])
        scores = dict(zip(self.model, (rows @ row[0]).tolist(), strict=True))
        assert [scores[hit.id] for hit in hits] == pytest.approx(sorted(scores.values(), reverse=True)[:k], abs=1e-5)
        assert len({hit.id for hit in hits}) == len(hits)

    @rule(numbers=some.filter(bool), edition=editions)
    def add(self, numbers, edition):
        rows = self.texts(numbers, edition)
        report = add(rows, "wiki", encoder=self.encoder, store=self.store)
        before, self.model = self.model, {**self.model, **{row["id"]: row for row in rows}}
        if not self.unsure:
            assert report.added == len(self.model) - len(before)
            assert report.unchanged == sum(before.get(row["id"]) == row for row in rows)
        self.unsure -= {row["id"] for row in rows}

    @rule(numbers=some)
    def delete(self, numbers):
        ids = [f"p{i:04d}" for i in numbers]
        delete(ids, "wiki", store=self.store)
        self.model = {key: row for key, row in self.model.items() if key not in ids}
        self.unsure -= set(ids)

    @precondition(lambda self: not self.unsure)
    @rule(numbers=some.filter(bool), edition=editions, number=st.integers(0, 2), adding=st.booleans())
    def stop(self, numbers, edition, number, adding):
        rows = self.texts(numbers, edition)
        try:
            with stopped_at(self.store, number):
                if adding:
                    add(rows, "wiki", encoder=self.encoder, store=self.store)
                else:
                    delete([row["id"] for row in rows], "wiki", store=self.store)
        except Stopped:
            self.ended_amid(rows, adding)
        else:
            self.ended(rows, adding)

    @precondition(lambda self: self.kind == "embedded" and not self.unsure)
    @rule(numbers=some.filter(bool), edition=editions, point=st.sampled_from(POINTS), adding=st.booleans())
    def kill(self, numbers, edition, point, adding):
        """SIGKILL of a process that adds or deletes; a point that it does not pass lets it end."""
        rows = self.texts(numbers, edition)
        file = write_lines(self.path / "given.jsonl", rows)
        self.store.close()
        KILLED.said = self.path / "said"
        code = KILLED.run(self.store.path, "add" if adding else "delete", file, env=killing.at(point))
        assert code in (0, -9), (point, KILLED.said.read_text())
        (self.ended_amid if code else self.ended)(rows, adding)

    def ended(self, rows, adding):
        ids = {row["id"]: row for row in rows}
        self.model = {**self.model, **ids} if adding else {key: v for key, v in self.model.items() if key not in ids}

    def ended_amid(self, rows, adding):
        self.unsure = {row["id"] for row in rows}
        self.check_unsure(rows, adding)

    def check_unsure(self, rows, adding):
        """Each of the points is as before, or as it was to be; the model takes what it is."""
        there = {point.id: point.payload["content"] for point in self.store.scroll("wiki")}
        for row in rows:
            key = row["id"]
            wanted = [self.model.get(key, {}).get("text"), row["text"] if adding else None]
            assert there.get(key) in wanted
            if there.get(key) == wanted[1]:
                self.model = {**self.model, key: row} if adding else {k: v for k, v in self.model.items() if k != key}

    @rule()
    def reopen(self):
        if self.kind == "embedded":
            self.store.close()

    @invariant()
    def holds_the_model(self):
        if "wiki" not in self.store.names():
            return
        there = {point.id: point for point in self.store.scroll("wiki", with_vectors=True)}
        assert {key: point.payload["content"] for key, point in there.items()} == {
            key: row["text"] for key, row in self.model.items()
        }
        if there:
            rows = self.encoder.encode_passages([f"{row['title']} {row['text']}" for row in self.model.values()])
            stored = np.stack([there[key].vectors["text-dense"] for key in self.model])
            np.testing.assert_allclose(stored, rows, atol=1e-6)
        card = self.store.card("wiki")
        if not card.pending:
            assert card.count == len(self.model)
            assert card.digest == digest((key, row["text"]) for key, row in self.model.items())


class LivingOnAServer(Living):
    kind = "server"


def histories(steps):
    """So many steps, of 50 each; XQG_TEST_STEPS=100000 for a night."""
    examples = int(os.environ.get("XQG_TEST_STEPS", steps)) // 50
    return settings(max_examples=examples, stateful_step_count=50, deadline=None)


TestLiving = Living.TestCase
TestLiving.settings = histories(200)
TestLivingOnAServer = LivingOnAServer.TestCase
TestLivingOnAServer.settings = histories(4800)


def test_a_collection_that_is_loaded_or_replaced_meanwhile_is_refused(store, name):
    load(passages(0, 30), name, encoder=an_encoder(), store=store)
    if isinstance(store, EmbeddedStore):
        with store.writer(name, card=replace(store.card(name), rows_digest="other")), pytest.raises(
            LockedError, match="is being loaded or changed by"
        ):  # fmt: skip
            delete(["p0001"], name, store=store)
    else:
        with pytest.raises(DataError, match="was loaded anew, or deleted, meanwhile"), store.update(name) as update:
            load(passages(0, 31), name, encoder=an_encoder(), store=store)
            update.record(update.card)
    delete(["p0001"], name, store=store)
    check_card(store, name)


def test_killed_at_every_point_the_same_call_again_ends_exactly(tmp_path, monkeypatch):
    monkeypatch.setenv("XQG_VDB_CACHE", str(tmp_path / "cache"))
    encoder = an_encoder()
    corpus = write_lines(tmp_path / "more.jsonl", passages(50, 250, tag="b"))
    gone = write_lines(tmp_path / "gone.jsonl", passages(20, 200))
    added = {row["id"]: row["text"] for row in [*passages(0, 50), *passages(50, 250, tag="b")]}
    kept = {key: text for key, text in added.items() if not "p0020" <= key < "p0200"}
    with killing.Workers(WORK, tmp_path / "said") as workers:
        for number, point in enumerate(POINTS):
            path = tmp_path / f"s{number}"
            with EmbeddedStore(path, free_space_floor=0) as store:
                load(passages(0, 100), "wiki", encoder=encoder, store=store)
            before = {row["id"]: row["text"] for row in passages(0, 100)}
            for what, file, after in [("add", corpus, added), ("delete", gone, kept)]:
                assert workers.run(path, what, file, env=killing.at(point)) == -9, point
                with EmbeddedStore(path, free_space_floor=0) as store:
                    for docid, text in {p.id: p.payload["content"] for p in store.scroll("wiki")}.items():
                        assert text in (before.get(docid), after.get(docid))
                assert workers.run(path, what, file) == 0, (tmp_path / "said").read_text()
                with EmbeddedStore(path, free_space_floor=0) as store:
                    assert {p.id: p.payload["content"] for p in store.scroll("wiki")} == after
                    check_card(store, "wiki")
                before = after


def test_many_new_points_come_into_the_graph_in_the_background(tmp_path):
    encoder = HashEncoder(dim=4096)
    with EmbeddedStore(tmp_path, free_space_floor=0) as store:
        load(passages(0, 10), "wiki", encoder=encoder, store=store)
        add(passages(10, 700), "wiki", encoder=encoder, store=store)
        assert store.admin.state("wiki").status == "yellow"
        store.close()  # ends it, and nothing is lost
        assert (store.version("wiki"), store.admin.state("wiki").indexed) == ("v0001", 0)
        add(passages(690, 701), "wiki", encoder=encoder, store=store)
        add(passages(600, 720, tag="b"), "wiki", encoder=encoder, store=store)  # meanwhile
        delete(["p0000"], "wiki", store=store)
        store.indexed("wiki")
        assert (store.version("wiki"), store.admin.state("wiki").status) == ("v0002", "green")
        assert store.admin.state("wiki").indexed >= 600
        assert [state.name for state in store.admin.versions("wiki")] == ["v0002"]
        assert sorted(path.name for path in (tmp_path / "wiki").iterdir()) == ["CURRENT", "load.lock", "v0002"]
        texts = {row["id"]: row["text"] for row in [*passages(1, 600), *passages(600, 720, tag="b")]}
        assert {point.id: point.payload["content"] for point in store.scroll("wiki")} == texts
        check_card(store, "wiki")


def test_after_a_power_cut_the_engines_log_alone_brings_back_what_was_changed(tmp_path):
    """Its other files as the last flush left them, the log and the card as they are."""
    here, then = tmp_path / "here" / "wiki", tmp_path / "then" / "wiki"
    with EmbeddedStore(here.parent, free_space_floor=0) as store:
        load(passages(0, 100), "wiki", encoder=an_encoder(), store=store)
        delete(["p0000"], "wiki", store=store)  # opens it
        shutil.copytree(here, then)
        add(passages(50, 150, tag="b"), "wiki", encoder=an_encoder(), store=store)
        delete([f"p{i:04d}" for i in range(20, 120)], "wiki", store=store)
        shutil.copytree(here / "v0001" / "shard" / "wal", then / "v0001" / "shard" / "wal", dirs_exist_ok=True)
        shutil.copy(here / "v0001" / "card.json", then / "v0001" / "card.json")
        with EmbeddedStore(then.parent, free_space_floor=0) as other:
            same(points(store, "wiki"), points(other, "wiki"))
            check_card(other, "wiki")
            copy = other.admin.create_snapshot("wiki")
            other.admin.download_snapshot("wiki", copy.name, tmp_path / "copy")
            other.admin.restore_snapshot("again", tmp_path / "copy")
            same(points(store, "wiki"), points(other, "again"))


def test_a_file_that_the_engines_log_is_about_to_rename_is_no_damage(tmp_path):
    with EmbeddedStore(tmp_path / "s", free_space_floor=0) as store:
        load(passages(0, 3), "wiki", encoder=an_encoder(), store=store)
        with store.reading("wiki") as reader:
            (reader.version.shard / "wal" / "tmp-open-99").symlink_to("renamed meanwhile")
        add(passages(3, 4), "wiki", encoder=an_encoder(), store=store)
        check_card(store, "wiki")


def test_a_shard_that_lost_points_is_still_found_out(tmp_path):
    """What is pending excuses its own ids only."""
    with EmbeddedStore(tmp_path / "s", free_space_floor=0) as store:
        load(passages(0, 30), "wiki", encoder=an_encoder(), store=store)
        with store.update("wiki") as update:
            update.record(replace(update.card, pending={"p0001": "1"}))
            update.delete(["p0001", "p0002"])
    with EmbeddedStore(tmp_path / "s") as store, pytest.raises(CorruptError, match="holds 28 points"):
        store.count("wiki")


def test_collections_answer_what_was_added(store, name):
    collection = load(passages(0, 30), name, encoder=an_encoder(), store=store).collection
    assert isinstance(collection, Collection)
    collection.add([{"id": "new", "text": "zebra giraffe", "lang": "en"}])
    assert collection.search("zebra giraffe", k=1, question_lang="und")[0].id == "new"
    collection.delete(["new"])
    assert collection.search("zebra giraffe", k=1, question_lang="und")[0].id != "new"
