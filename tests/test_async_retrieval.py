"""Searches from coroutines against the same searches one by one, on every store.

The server is `fake_qdrant` over HTTP, and the real one at XQG_TEST_QDRANT_URL when that is set; it was run on a
real server 1.19.0.
"""

import asyncio
import threading
from itertools import chain

import pytest
from cli_cases import write_inputs
from fake_qdrant import FakeQdrant, Fault
from integration_cases import loaded_on, questions
from qdrant_client import models
from rankings import assert_same, scored
from tiny_model import write_tiny_encoder

from xqg_vdb import AsyncRetriever, Collection, Encoder, Retriever, load
from xqg_vdb.errors import DataError, MismatchError, ServerError
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.layout import CollectionOptions
from xqg_vdb.store.operations import finish
from xqg_vdb.store.server import client as client_errors
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.types import Question, Search

SEARCH = "POST .*/points/query/batch"


@pytest.fixture(scope="module", params=["embedded", "memory", "http", "server"])
def retriever(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("async")
    if request.param in ("http", "server"):
        with loaded_on(request.param, folder) as found:
            yield found.retriever
        return
    write_inputs(folder, 90)
    embedded = request.param == "embedded"
    store = EmbeddedStore(folder / "store", free_space_floor=0) if embedded else ServerStore.connect(":memory:")
    with Encoder(write_tiny_encoder(folder / "tiny", calibration=0.5), threads=2) as encoder, store:
        build, corpus = folder / "build", folder / "corpus.jsonl"
        load(
            corpus,
            "wiki",
            encoder=encoder,
            queries=folder / "queries.jsonl",
            store=store,
            options=LoadOptions(build=build),
        )
        yield Retriever(encoder, Collection("wiki", store))


def agree(found, expected):
    """The same hits, with scores to 1e-6: sums of numpy depend on the alignment."""
    told = {hit.id: (hit.text, hit.title, hit.lang, hit.meta) for hit in chain(*expected)}
    for mine, theirs in zip(found, expected, strict=True):
        assert_same(scored(mine), scored(theirs), atol=1e-6)
        for hit in mine:
            assert (hit.text, hit.title, hit.lang, hit.meta) == told[hit.id]


async def test_a_hundred_at_once_are_what_they_are_one_by_one(retriever):
    """Nothing is mixed, and no question is rounded by its neighbours."""
    asked = [
        (text, (None, ["de"], ["en"])[i % 3], (None, "sw", "ar", "fr")[i % 4], 1 + i % 12)
        for i, text in enumerate(questions(100))
    ]
    expected = [retriever.search(text, passage_langs=langs, question_lang=lang, k=k) for text, langs, lang, k in asked]
    assert len({tuple(hit.id for hit in hits) for hits in expected}) > 90
    async with AsyncRetriever(retriever, threads=4) as searcher:
        for _ in range(2):
            found = await asyncio.gather(
                *(searcher.search(text, passage_langs=langs, question_lang=lang, k=k) for text, langs, lang, k in asked)
            )
            agree(found, expected)
            assert found == expected or not isinstance(retriever.collection.store, EmbeddedStore)


async def test_many_questions_in_one_call(retriever):
    queries = [Question(str(i), text) for i, text in enumerate(questions(70))]
    async with AsyncRetriever(retriever) as searcher:
        found, expected = await searcher.run(queries, Search(3)), retriever.run(queries, Search(3))
        assert [(one.question, one.lang) for one in found] == [(one.question, one.lang) for one in expected]
        agree([one.hits for one in found], [one.hits for one in expected])
        assert await searcher.run([], Search(3)) == []


async def test_one_bad_question_fails_alone(retriever):
    async with AsyncRetriever(retriever) as searcher:
        good = [searcher.search(text) for text in questions(6)]
        bad = [searcher.search(" "), searcher.search("w1", passage_langs=["klingonish"]), searcher.search("w1", k=0)]
        found = await asyncio.gather(*good, *bad, *[searcher.search(text) for text in questions(6)],
                                     return_exceptions=True)  # fmt: skip
    agree(found[:6] + found[9:], 2 * [retriever.search(text) for text in questions(6)])
    assert all(isinstance(error, DataError) for error in found[6:9])
    assert str(found[6]) == "Question '0' is blank: there is nothing to search for."


async def test_ties_at_the_last_place_are_settled_by_id(tmp_path):
    """20 equal passages, of which 5 are wanted: their ids decide, as in `Retriever`."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(f'{{"id": "p{(7 * i) % 20:02d}", "text": "w1 w2", "lang": "en"}}\n' for i in range(20)))
    model = write_tiny_encoder(tmp_path / "tiny", calibration=0.5)
    with Encoder(model) as encoder, FakeQdrant() as fake, ServerStore.connect(fake.url) as store:
        ties = load(
            corpus, "ties", encoder=encoder, store=store, options=LoadOptions(build=tmp_path / "build")
        ).collection
        async with AsyncRetriever(Retriever(encoder, ties)) as searcher:
            assert [hit.id for hit in await searcher.search("w3", k=5)] == [f"p{i:02d}" for i in range(5)]


async def test_the_event_loop_runs_while_questions_are_encoded(retriever, monkeypatch):
    """An encoder that goes on only when the event loop has run meanwhile, and another thread encodes as well."""
    threads, both, ticked = set(), threading.Barrier(2), threading.Event()
    encode = retriever.encoder.encode_queries

    def slow(texts, calibrate):
        threads.add(threading.current_thread())
        both.wait()
        ticked.wait()
        return encode(texts, calibrate=calibrate)

    monkeypatch.setattr(retriever.encoder, "encode_queries", slow)

    async def tick():
        while len(threads) < 2:
            await asyncio.sleep(0.01)
        ticked.set()

    async with AsyncRetriever(retriever, threads=2) as searcher:
        await asyncio.gather(tick(), *(searcher.search(text) for text in questions(2)))
    assert threading.main_thread() not in threads and len(threads) == 2


def test_one_retriever_in_one_loop_after_another(retriever):
    """What `chain.ainvoke` under `asyncio.run` does: connections of a closed loop are not used again."""
    searcher = AsyncRetriever(retriever)
    (text,) = questions(1)

    async def once():
        try:
            return await searcher.search(text)
        finally:
            if searcher._server is not None:
                await searcher._server.aclose()

    agree([asyncio.run(once()), asyncio.run(once())], 2 * [retriever.search(text)])


def test_threads_are_checked(retriever):
    with pytest.raises(ValueError, match="threads must be 1 or more, got 0"):
        AsyncRetriever(retriever, threads=0)


@pytest.fixture
def fake_and_searcher(tmp_path, monkeypatch):
    """A searcher on a fake server; waits are short."""
    monkeypatch.setattr(client_errors, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(client_errors, "SHORTEST_ASKED", 0.01)
    write_inputs(tmp_path, 30)
    model = write_tiny_encoder(tmp_path / "tiny", calibration=0.5)
    with Encoder(model) as encoder, FakeQdrant() as fake:
        store = ServerStore.connect(fake.url, api_key="SECRET-CANARY", timeout=60, deadline=30)
        with store:
            wiki = load(
                tmp_path / "corpus.jsonl",
                "wiki",
                encoder=encoder,
                store=store,
                options=LoadOptions(build=tmp_path / "build"),
            ).collection
            fake.keys.clear()
            yield fake, AsyncRetriever(Retriever(encoder, wiki))


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(429, headers={"Retry-After": "0"})] * 3,
        [Fault(503), Fault(500), Fault(502)],
        [Fault(429), Fault(429, headers={"Retry-After": "soon"})],
        [Fault()] * 2,
    ],
    ids=["429", "5xx", "no wait given", "connection reset"],
)
async def test_what_may_pass_is_repeated(fake_and_searcher, faults):
    fake, searcher = fake_and_searcher
    async with searcher:
        expected = searcher.retriever.search("w1 w2")
        for fault in faults:
            fault.only = SEARCH
        fake.faults, fake.requests[:] = list(faults), []
        agree([await searcher.search("w1 w2")], [expected])
        assert fake.count("POST", "/query/batch") == len(faults) + 1
        assert fake.keys == {"SECRET-CANARY"}


@pytest.mark.parametrize(
    ("fault", "said", "requests"),
    [
        (Fault(400, body=b'{"status": {"error": "no, SECRET-CANARY"}}'), r"refused the request for good \(.*\*\*\*", 1),
        (Fault(401), "refuses the API key", 1),
        (Fault(503, headers={"Retry-After": "60"}), "is away or overloaded", 1),
    ],
    ids=["400", "401", "busy for long"],
)
async def test_what_will_not_pass_is_an_error_at_once(fake_and_searcher, fault, said, requests):
    fake, searcher = fake_and_searcher
    async with searcher:
        fault.only = SEARCH
        fake.faults, fake.requests[:] = [fault] * 5, []
        with pytest.raises(ServerError, match=said) as caught:
            await searcher.search("w1 w2")
        assert fake.count("POST", "/query/batch") == requests and "CANARY" not in str(caught.value)


async def test_a_collection_that_is_gone_is_named(fake_and_searcher):
    _, searcher = fake_and_searcher
    async with searcher:
        searcher.retriever.collection.store.delete("wiki")
        with pytest.raises(DataError, match=r"There is no collection 'wiki' in 127\.0\.0\.1"):
            await searcher.search("w1 w2")


@pytest.fixture
def two_versions(tmp_path):
    """(store, retriever of the first version, how to publish the next one with an encoder of another seed)."""
    write_inputs(tmp_path, 40)
    corpus, queries = tmp_path / "corpus.jsonl", tmp_path / "queries.jsonl"
    with FakeQdrant() as fake, ServerStore.connect(fake.url, options=CollectionOptions(keep=2, bulk=False)) as store:

        def publish(seed, **recipe):
            with Encoder(write_tiny_encoder(tmp_path / f"tiny{seed}", seed=seed, calibration=0.5)) as encoder:
                load(corpus, "wiki", encoder=encoder, queries=queries, store=store, **recipe)

        with Encoder(write_tiny_encoder(tmp_path / "tiny0", calibration=0.5)) as encoder:
            load(corpus, "wiki", encoder=encoder, store=store)
            yield fake, Retriever(encoder, Collection("wiki", store)), publish


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_load_by_another_encoder_is_noticed_by_who_searches_already(two_versions, asynchronous):
    _, retriever, publish = two_versions
    searcher = AsyncRetriever(retriever)
    (text,) = questions(1)
    assert retriever.search(text)
    publish(1)
    with pytest.raises(MismatchError, match="was made by"):
        _ = await searcher.search(text) if asynchronous else retriever.search(text)
    await searcher.aclose()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_new_version_brings_its_own_means(two_versions, asynchronous):
    """The second version has generated queries, which its card measures means on."""
    _, retriever, publish = two_versions
    (text,) = questions(1)
    retriever.search(text, question_lang="sw")
    publish(0)
    fresh = Retriever(retriever.encoder, retriever.collection)
    async with AsyncRetriever(retriever) as searcher:
        found = (
            await searcher.search(text, question_lang="sw")
            if asynchronous
            else retriever.search(text, question_lang="sw")
        )
    agree([found], [fresh.search(text, question_lang="sw")])
    assert retriever.question_encoder.language_means.means.keys() == fresh.question_encoder.language_means.means.keys()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_version_that_goes_during_a_run_is_asked_again_of_the_next(two_versions, asynchronous):
    fake, retriever, publish = two_versions
    publish(0)
    expected = Retriever(retriever.encoder, retriever.collection).run([Question("q", text) for text in questions(70)])
    retriever.collection.store.admin.rollback("wiki")

    def switch(method, path):
        if path.endswith("/query/batch"):
            fake.before = lambda method, path: None
            here = models.CreateAlias(collection_name="wiki__v0002", alias_name="wiki")
            fake.client.update_collection_aliases([models.CreateAliasOperation(create_alias=here)])
            fake.client.delete_collection("wiki__v0001")

    fake.before = switch
    asked = [Question("q", text) for text in questions(70)]
    async with AsyncRetriever(retriever) as searcher:
        found = await searcher.run(asked) if asynchronous else retriever.run(asked)
    agree([answer.hits for answer in found], [answer.hits for answer in expected])


async def test_passages_come_and_go_while_searches_run(retriever):
    text = "w1 w2 w3 something new"
    async with AsyncRetriever(retriever) as searcher:
        asked = [asyncio.create_task(searcher.search(question)) for question in questions(20)]
        added = await searcher.add([{"id": "new", "text": text, "lang": "en"}])
        assert (added.added, added.passages) == (1, 91)
        assert "new" in [hit.id for hit in await searcher.search(text, k=91)]
        gone = await searcher.delete(["new", "nowhere"])
        assert (gone.deleted, gone.missing, gone.passages) == (1, ("nowhere",), 90)
        assert all(await asyncio.gather(*asked))
        assert "new" not in [hit.id for hit in await searcher.search(text, k=91)]


def test_steps_that_wait_for_an_event_loop_are_ended_where_there_is_none():
    ended = []

    async def waits():
        try:
            await asyncio.sleep(0)
        finally:
            ended.append(True)

    steps = waits()
    with pytest.raises(RuntimeError, match="waits for an event loop"):
        finish(steps)
    assert ended == [True]
