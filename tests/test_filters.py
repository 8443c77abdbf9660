"""Conditions on passages' fields: every engine finds what a plain reading of the fields says, page by page."""

import datetime
import json
import os
import uuid

import pytest
from cli_cases import run_cli
from fake_qdrant import FakeQdrant
from qdrant_client import models
from tiny_model import write_tiny_encoder

from xqg_vdb import AsyncRetriever, Collection, Encoder, Retriever, load
from xqg_vdb.errors import DataError
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.store import open_store
from xqg_vdb.store.filters import as_filter, parse_where, payload_path
from xqg_vdb.types import Hybrid, Search

SERVER, KEY = os.environ.get("XQG_TEST_QDRANT_URL"), os.environ.get("XQG_TEST_QDRANT_API_KEY")
TENANTS, GROUPS = ["acme", "globex", "initech"], ["staff", "board", "public"]


def fields(i):
    made = {
        "source": "wiki" if i % 3 else "news", "tenant": TENANTS[i % 3], "year": 2000 + i, "price": i / 2,
        "day": f"2026-01-{i % 28 + 1:02d}", "open": i % 2 == 0, "access": GROUPS[: i % 3 + 1], "code": str(i % 5),
        "author": {"name": f"a{i % 4}"}, "a b": f"x{i % 2}", "作者": f"名{i % 3}",
    }  # fmt: skip
    return made if i % 10 else {**made, "note": "n"}


ROWS = {f"p{i}": fields(i) for i in range(40)}


@pytest.fixture(scope="module", params=["embedded", "http", "server"])
def retriever(request, tmp_path_factory):
    folder, name = tmp_path_factory.mktemp("filters"), f"test-{uuid.uuid4().hex[:12]}"
    if request.param == "server" and not SERVER:
        pytest.skip("XQG_TEST_QDRANT_URL is not set")
    fake = FakeQdrant() if request.param == "http" else None
    where = {"embedded": {"path": folder / "store"}, "server": {"url": SERVER, "api_key": KEY}}
    corpus = [
        {"id": docid, "text": f"w{i} w{i + 1} w3", "lang": "en", **row} for i, (docid, row) in enumerate(ROWS.items())
    ]
    with Encoder(write_tiny_encoder(folder / "tiny", calibration=0.5), threads=1) as encoder:
        if fake is not None:
            fake.__enter__()
        with open_store(**where.get(request.param, {"url": fake and fake.url})) as store:
            load(corpus, name, encoder=encoder, store=store, options=LoadOptions(hybrid=Hybrid()))
            yield Retriever(encoder, Collection(name, store, encoder=encoder))
            store.delete(name)
        if fake is not None:
            fake.__exit__(None, None, None)


CASES = [
    ({"source": "wiki"}, lambda row: row["source"] == "wiki"),
    ({"tenant": ["acme", "initech"]}, lambda row: row["tenant"] in ("acme", "initech")),
    ({"year": 2007}, lambda row: row["year"] == 2007),
    ({"year": {"gte": 2010, "lt": 2013.5}}, lambda row: 2010 <= row["year"] < 2013.5),
    ({"price": 3.5}, lambda row: row["price"] == 3.5),
    ({"open": True, "source": "news"}, lambda row: row["open"] and row["source"] == "news"),
    ({"day": {"gt": "2026-01-10", "lte": datetime.date(2026, 1, 12)}}, lambda row: row["day"][-2:] in ("11", "12")),
    ({"access": "board"}, lambda row: "board" in row["access"]),
    ({"access": {"not": ["board"]}}, lambda row: "board" not in row["access"]),
    ({"note": None}, lambda row: "note" not in row),
    ({"note": {"not": None}, "year": {"gte": 2011}}, lambda row: "note" in row and row["year"] >= 2011),
    ({"author.name": "a2"}, lambda row: row["author"]["name"] == "a2"),
    ({"a b": "x1"}, lambda row: row["a b"] == "x1"),
    ({"作者": "名2"}, lambda row: row["作者"] == "名2"),
    ({"code": ["3", 3, True]}, lambda row: row["code"] == "3"),
    ({"meta.source": "wiki", "tenant": {"not": "acme"}}, lambda row: row["tenant"] in ("globex", "initech")),
]  # fmt: skip


@pytest.mark.parametrize(("where", "wanted"), CASES, ids=[str(where) for where, _ in CASES])
def test_what_is_found_is_what_the_fields_say(retriever, where, wanted):
    expected = {docid for docid, row in ROWS.items() if wanted(row)}
    assert 0 < len(expected) < len(ROWS)
    for given in (where, as_filter(where)):
        assert {hit.id for hit in retriever.search("w3 w5", k=100, where=given)} == expected
    assert {hit.id for hit in retriever.search("w3", k=100, where=where, passage_langs=["en"])} == expected
    assert retriever.search("w3", k=100, where=where, passage_langs=["de"]) == []


def test_qdrants_own_filters(retriever):
    field, path = models.FieldCondition, models.PayloadField
    whole = models.Filter(
        should=[
            field(key="meta.tenant", match=models.MatchValue(value="acme")),
            models.IsEmptyCondition(is_empty=path(key="meta.nothing")),
        ],
        must_not=models.Filter(must=field(key="meta.source", match=models.MatchExcept(**{"except": ["wiki"]}))),
        must=[field(key="meta.access", values_count=models.ValuesCount(gte=2))],
        min_should=models.MinShould(conditions=[field(key="meta.year", range=models.Range(gte=2020))], min_count=1),
    )
    expected = {docid for docid, row in ROWS.items()
                if row["source"] == "wiki" and len(row["access"]) >= 2 and row["year"] >= 2020}  # fmt: skip
    assert {hit.id for hit in retriever.search("w3", k=100, where=whole)} == expected
    by_id = models.Filter(must=[models.HasIdCondition(has_id=[str(uuid.uuid4())])])
    assert retriever.search("w3", where=by_id) == []
    assert {hit.id for hit in retriever.search("w3", where={"id": ["p1", "p2"]})} == {"p1", "p2"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_json_cannot_say_is_refused_by_every_engine(retriever, value):
    """As null, NaN would be no bound at all, and the filter would let everything through."""
    kind = {"match": models.MatchValue(value=value)} if isinstance(value, str) else {"range": models.Range(gte=value)}
    for where in ({"year": value}, models.Filter(must=[models.FieldCondition(key="meta.year", **kind)])):
        with pytest.raises(DataError, match="a number or a text that no field can have"):
            retriever.search("w3", where=where)


async def test_coroutines_hybrid_and_batches_filter_too(retriever):
    where, texts = {"tenant": "acme"}, ["w3 w9", "w12"]
    async with AsyncRetriever(retriever) as coroutine:
        found = await coroutine.search(texts[0], where=where)
        assert [hit.id for hit in found] == [hit.id for hit in retriever.search(texts[0], where=where)]
        by_text = await coroutine.run(texts, Search(3, where=where))
        for answer, other in zip(by_text, retriever.collection.run(texts, Search(3, where=where)), strict=True):
            assert [hit.id for hit in answer.hits] == [hit.id for hit in other.hits]
            assert len(answer.hits) == 3 and {hit.meta["tenant"] for hit in answer.hits} == {"acme"}
    both = Retriever(retriever.encoder, retriever.collection, hybrid=True)
    found = both.search("w3 w9", k=50, where=where)
    assert found and {hit.meta["tenant"] for hit in found} == {"acme"}


async def test_langchain_passes_qdrants_filters_through(retriever):
    pytest.importorskip("langchain_core")
    from xqg_vdb.integrations.langchain import XqgRetriever

    ours = XqgRetriever(retriever=retriever, k=40, filter=as_filter({"source": "news"}))
    expected = {docid for docid, row in ROWS.items() if row["source"] == "news"}
    for found in (ours.invoke("w3"), await ours.ainvoke("w3")):
        assert {one.id for one in found} == expected
    expected = {docid for docid, row in ROWS.items() if row["tenant"] == "globex"}
    for found in (
        ours.invoke("w3", filter={"tenant": "globex"}),
        await ours.ainvoke("w3", filter={"tenant": "globex"}),
    ):
        assert {one.id for one in found} == expected


async def test_llama_index_passes_its_filters_through(retriever):
    pytest.importorskip("llama_index.core")
    from llama_index.core.vector_stores import FilterCondition as All
    from llama_index.core.vector_stores import FilterOperator as Is
    from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

    from xqg_vdb.integrations.llama_index import XqgRetriever

    def field(key, value, operator=Is.EQ):
        return MetadataFilter(key=key, value=value, operator=operator)

    cases = [
        ([field("source", "wiki")], All.AND, lambda row: row["source"] == "wiki"),
        ([field("year", 2035, Is.GTE), field("tenant", "acme")], All.OR,
         lambda row: row["year"] >= 2035 or row["tenant"] == "acme"),
        ([field("tenant", ["acme", "globex"], Is.NIN), field("year", 2011, Is.NE)], All.AND,
         lambda row: row["tenant"] == "initech" and row["year"] != 2011),
        ([field("access", ["staff", "public"], Is.ALL)], All.AND, lambda row: "public" in row["access"]),
        ([field("access", "board", Is.CONTAINS), field("note", None, Is.IS_EMPTY)], All.AND,
         lambda row: "board" in row["access"] and "note" not in row),
        ([MetadataFilters(filters=[field("source", "wiki")]), field("code", ["1"], Is.IN)], All.NOT,
         lambda row: row["source"] != "wiki" and row["code"] != "1"),
    ]  # fmt: skip
    for conditions, condition, wanted in cases:
        filters = MetadataFilters(filters=conditions, condition=condition)
        ours = XqgRetriever(retriever, similarity_top_k=40, filters=filters)
        expected = {docid for docid, row in ROWS.items() if wanted(row)}
        for found in (ours.retrieve("w3"), await ours.aretrieve("w3")):
            assert {one.node.node_id for one in found} == expected
    with pytest.raises(DataError, match="cannot be filtered by the operator 'text_match_insensitive'"):
        filters = MetadataFilters(filters=[field("source", "x", Is.TEXT_MATCH_INSENSITIVE)])
        XqgRetriever(retriever, filters=filters)


async def test_haystack_passes_its_filters_through(retriever):
    pytest.importorskip("haystack")
    from xqg_vdb.integrations.haystack import XqgRetriever

    ours = XqgRetriever(
        retriever.collection.name, top_k=40, filters={"field": "meta.source", "operator": "==", "value": "news"}
    )
    ours._found = AsyncRetriever(retriever)
    assert XqgRetriever.from_dict(ours.to_dict()).filters == ours.filters
    expected = {docid for docid, row in ROWS.items() if row["source"] == "news"}
    assert {one.id for one in ours.run("w3")["documents"]} == expected
    both = {
        "operator": "AND",
        "conditions": [
            {"field": "meta.year", "operator": ">=", "value": 2010},
            {"field": "meta.tenant", "operator": "in", "value": ["acme", "globex"]},
        ],
    }
    expected = {docid for docid, row in ROWS.items() if row["year"] >= 2010 and row["tenant"] != "initech"}
    assert {one.id for one in (await ours.run_async("w3", filters=both))["documents"]} == expected


@pytest.mark.parametrize("hybrid", [False, True])
async def test_pages_follow_each_other(retriever, hybrid):
    searcher = Retriever(retriever.encoder, retriever.collection, hybrid=hybrid)
    whole = searcher.search("w3 w5", k=12)
    pages = [hit for start in (0, 5, 10) for hit in searcher.search("w3 w5", k=5, offset=start)]
    assert [hit.id for hit in pages[:12]] == [hit.id for hit in whole]
    assert searcher.search("w3 w5", k=5, offset=100) == []
    async with AsyncRetriever(searcher) as coroutine:
        assert [hit.id for hit in await coroutine.search("w3 w5", k=5, offset=5)] == [hit.id for hit in pages[5:10]]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("source=wiki", "where must be a dict of fields"),
        ({}, "where must be a dict of fields"),
        ({"year": {"above": 3}}, r"where\['year'\] must have gt, gte, lt, lte or not; found \['above'\]"),
        ({"year": {"gte": "last year"}}, "meta.year is compared with numbers or with dates such as 2026-01-31"),
        ({"year": []}, "meta.year: an empty list of values would find nothing"),
        ({"year": {"gte": None}}, "meta.year is compared with None"),
        ({"year": 10**400}, "meta.year is compared with numbers"),
        ({"year": [{}]}, "meta.year is compared with text, numbers"),
        ({"": 1}, "'' names no field"),
        ({'a"b': 1}, "names no field"),
        ({5: 1}, "5 names no field"),
    ],
)
def test_what_is_no_condition_is_named(retriever, where, said):
    with pytest.raises(DataError, match=said):
        retriever.search("w3", where=where)


def test_what_is_typed():
    assert parse_where([]) is None
    typed = [
        "source=wiki",
        "source = news",
        "year>=2020",
        "year<2024.5",
        "tenant!=acme",
        "note=",
        "open=true",
        "day>2026-01-31",
    ]
    assert parse_where(typed) == {
        "source": ["wiki", "news"], "year": {"gte": 2020, "lt": 2024.5}, "tenant": {"not": ["acme"]}, "note": [None],
        "open": ["true", True], "day": {"gt": "2026-01-31"},
    }  # fmt: skip
    assert parse_where(["code=3", "url=a=b"]) == {"code": ["3", 3], "url": ["a=b"]}
    for wrong, said in (
        (["source"], "is no condition"), (["=wiki"], "is no condition"), (["a=1", "a>2"], "cannot have a bound"),
        (["a>2", "a=1"], "has a bound already"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said):
            parse_where(wrong)
    assert [payload_path(name) for name in ("lang", "meta.lang", "id", "text", '"a.b".c', "tags[]", "meta")] == [
        "meta.lang", "meta.lang", "id", "content", 'meta."a.b".c', "meta.tags[]", "meta.meta"
    ]  # fmt: skip


def test_on_the_command_line(tmp_path):
    model = write_tiny_encoder(tmp_path / "tiny", calibration=0.5)
    lines = [
        json.dumps({"id": docid, "text": f"w{i} w3", "lang": "en", **row})
        for i, (docid, row) in enumerate(ROWS.items())
    ]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    assert run_cli(tmp_path, "load", "corpus.jsonl", "wiki", "--encoder", model).returncode == 0
    search = ["search", "wiki", "w3", "--encoder", model, "--json", "-k", "40"]
    done = run_cli(tmp_path, *search, "--where", "code=3", "--where", "year>=2010", "--where", "source!=news")
    assert done.returncode == 0, done.stderr
    expected = {docid for docid, row in ROWS.items()
                if row["code"] == "3" and row["year"] >= 2010 and row["source"] != "news"}  # fmt: skip
    assert {hit["id"] for hit in json.loads(done.stdout)[0]["hits"]} == expected
    done = run_cli(tmp_path, *search, "--where", "source")
    assert (done.returncode, done.stdout) == (3, "") and done.stderr.startswith(
        "Error: 'source' is no condition: write"
    )
