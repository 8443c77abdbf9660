"""The load from files to a searchable collection, against a twin that computes every vector from the definitions."""

import gzip
import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient

from xqg_vdb.calibration import LanguageMeans, unpack_means
from xqg_vdb.errors import DataError, LockedError, MismatchError
from xqg_vdb.files import lock_folder
from xqg_vdb.index import build as building
from xqg_vdb.index import load as load_folder
from xqg_vdb.index import write as writing
from xqg_vdb.index.load import LoadOptions, load
from xqg_vdb.models.folder import cache_folder
from xqg_vdb.search.retriever import Collection, Retriever
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.layout import CollectionOptions, point_id
from xqg_vdb.store.server.names import CARD_KEY
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.testing import HashEncoder
from xqg_vdb.texts.records import Rejects
from xqg_vdb.types import GeneratedQueries, Hybrid, Passage, Recipe

DIM = 16
CORPUS = [
    {"id": "nile", "title": "Nile", "text": "The Nile flows north through Africa", "lang": "en", "year": 1970},
    {"id": "amazon", "text": "The Amazon carries more water than any other river", "lang": "en"},
    {"id": "alps", "title": "Alpen", "text": "Die Alpen sind ein Gebirge in Europa", "lang": "de"},
    {
        "id": "moon",
        "text": "The Moon goes round the Earth in a month",
        "lang": "en",
        "meta": {"tags": ["sky", "night"]},
    },
    {"id": "salt", "text": "Salt dissolves in water", "lang": "en"},
]
QUERIES = [
    {
        "id": "nile",
        "generated_queries": {"sw": ["mto nile unatiririka wapi", "nile iko wapi"], "ha": ["ina kogin nile"]},
    },
    {"id": "amazon", "generated_queries": {"sw": ["amazon ina maji mengi"], "ha": ["amazon kogi ne", "ruwan amazon"]}},
    {"id": "alps", "generated_queries": {"ha": ["alps duwatsu ne"]}},
    {"id": "salt", "generated_queries": {"sw": ["chumvi huyeyuka katika maji"]}},
]
EVEN = [{"id": p["id"], "generated_queries": {"sw": [f"swali {p['id']}", f"maji {i}"], "ha": [f"tambaya {i}"]}}
        for i, p in enumerate(CORPUS)]  # fmt: skip
RECIPES = [
    Recipe(), Recipe(alpha=0.6, shrink=2.0, center=False), Recipe(pool="mean", alpha=0.5),
    Recipe(alpha=0.4, query_langs=("sw",)), Recipe(alpha=0.0), Recipe(alpha=0.0, query_langs=("sw",)),
    Recipe(shrink=0.0),
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XQG_VDB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["embedded", "server"])
def store(request, tmp_path):
    with a_store(request.param, tmp_path / "store") as store:
        yield store


def a_store(kind, path):
    return EmbeddedStore(path, free_space_floor=0) if kind == "embedded" else ServerStore.connect(":memory:")


def bank():
    rng = np.random.default_rng(7)
    means = {lang: (0.2 * rng.standard_normal(DIM)).astype(np.float32) for lang in ("sw", "ar")}
    return LanguageMeans(means, {"sw": 3, "ar": 40}, "bank")


def an_encoder(**options):
    return HashEncoder(dim=DIM, calibration=0.7, language_means=bank(), **options)


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "corpus.jsonl", CORPUS), write(tmp_path / "queries.jsonl", QUERIES)


def rows_of(store, name="wiki"):
    """(payload, vector) by id."""
    points = list(store.scroll(name, with_vectors=True))
    assert len({point.id for point in points}) == len(points)
    return {point.id: (dict(point.payload), point.vectors["text-dense"]) for point in points}


def same(one, other, *, atol=0.0):
    assert one.keys() == other.keys()
    for key, (payload, vector) in one.items():
        assert payload == other[key][0]
        np.testing.assert_allclose(vector, other[key][1], rtol=0.0, atol=atol)


def unit(vector):
    return vector / max(np.linalg.norm(vector), 1e-12)


def twin(corpus, queries, recipe, *, distance="cosine", asked=None):
    """id -> vector in float64, one passage and one query at a time, as the formulas in fusion.py have it."""
    encoder = an_encoder()
    encode = {"p": lambda text: encoder.encode_passages([text])[0].astype(np.float64),
              "q": lambda text: encoder.encode_queries([text], calibrate=False)[0].astype(np.float64)}  # fmt: skip
    ids = {passage["id"] for passage in corpus}
    known = {record["id"]: record["generated_queries"] for record in queries if record["id"] in ids}
    spoken = sorted({lang for texts in known.values() for lang in texts})
    langs = sorted(set(recipe.query_langs)) if recipe.query_langs else spoken
    mean = {lang: m.astype(np.float64) for lang, m in bank().means.items()}
    for lang in langs:
        vectors = [encode["q"](q) for texts in known.values() for q in texts.get(lang, [])]
        n, own = bank().counts.get(lang, 0), len(vectors)
        weight = min(own, n) if n else own  # generated queries never outweigh the bank
        mean[lang] = (n * mean.get(lang, np.zeros(DIM)) + weight * np.mean(vectors, axis=0)) / (n + weight)
    mean.update(asked or {})
    fused = {}
    for passage in corpus:
        title = passage.get("title", "")
        e = encode["p"](f"{title} {passage['text']}" if title else passage["text"])
        mine = [(lang, encode["q"](q)) for lang in langs for q in known.get(passage["id"], {}).get(lang, [])]
        total, n = sum((v for _, v in mine), np.zeros(DIM)), len(mine)
        if recipe.alpha == 0.0 or not langs:
            v = e
        elif recipe.pool == "sum":
            v = (1 - recipe.alpha) * e + recipe.alpha * total
        elif recipe.pool == "mean":
            v = (1 - recipe.alpha) * e + recipe.alpha * total / n if n else e
        elif recipe.center:
            content = sum((v - mean[lang] for lang, v in mine), np.zeros(DIM))
            v = (1 - recipe.alpha) * e + (recipe.alpha * content / (n + recipe.shrink) if n else 0)
        elif n + recipe.shrink:
            prior = np.mean([mean[lang] for lang in langs], axis=0)
            v = (1 - recipe.alpha) * e + recipe.alpha * (total + recipe.shrink * prior) / (n + recipe.shrink)
        else:
            v = e
        fused[passage["id"]] = unit(v) if distance == "cosine" else v
    return fused


def close_to(rows, expected):
    assert rows.keys() == expected.keys()
    for key, vector in expected.items():
        np.testing.assert_allclose(rows[key][1], vector, atol=1e-4)  # the card keeps means in 16 bits


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_vectors_are_those_of_the_definitions(files, recipe):
    with ServerStore.connect(":memory:") as store:
        load(files[0], "wiki", encoder=an_encoder(), queries=files[1], recipe=recipe, store=store)
        close_to(rows_of(store), twin(CORPUS, QUERIES, recipe))


@pytest.mark.parametrize("pool", ["shrunk", "sum"])
def test_both_stores_hold_vectors_payloads_and_card(store, files, tmp_path, pool):
    recipe, queries = Recipe(pool=pool, alpha=0.3), QUERIES if pool == "shrunk" else EVEN
    path = write(tmp_path / "q" / "queries.jsonl", queries)
    collection = load(files[0], "wiki", encoder=an_encoder(), queries=path, recipe=recipe, store=store).collection
    rows, card = rows_of(store), collection.card
    close_to(rows, twin(CORPUS, queries, recipe))
    langs = ["ha", "sw"]
    assert re.fullmatch("[0-9a-f]{16}", rows["nile"][0].pop("row"))
    assert rows["nile"][0] == {
        "id": "nile", "content": "The Nile flows north through Africa",
        "meta": {"lang": "en", "title": "Nile", "query_langs": langs, "year": 1970},
    }  # fmt: skip
    assert rows["moon"][0]["meta"]["query_langs"] == ([] if pool == "shrunk" else langs)
    assert rows["moon"][0]["meta"]["tags"] == ["sky", "night"]
    assert (card.count, card.query_langs, card.calibration, card.recipe) == (5, ("ha", "sw"), 0.7, recipe)
    assert collection.count() == 5 and collection.count(passage_langs=["de"]) == 1
    hits = Retriever(an_encoder(), collection).search("Nile flows north through Africa", k=1, question_lang="und")
    assert [hit.id for hit in hits] == ["nile"]


@pytest.mark.parametrize("normalize", [False, True])
def test_dot_distance_keeps_the_length_that_the_encoder_gives(store, files, normalize):
    """A passage without queries is as long as the others: its own length, or 1."""
    encoder = an_encoder()
    encoder.facts = replace(encoder.facts, normalize=normalize)
    load(
        files[0],
        "wiki",
        encoder=encoder,
        queries=files[1],
        recipe=Recipe(),
        store=store,
        options=LoadOptions(distance="dot"),
    )
    close_to(rows_of(store), twin(CORPUS, QUERIES, Recipe(), distance="cosine" if normalize else "dot"))
    assert store.card("wiki").distance == "dot"


def test_distance_suits_the_encoder(files):
    encoder = an_encoder()
    encoder.facts = replace(encoder.facts, normalize=False)
    with ServerStore.connect(":memory:") as store:
        assert load(files[0], "wiki", encoder=encoder, store=store).collection.card.distance == "dot"


def test_loading_twice_changes_nothing(store, files, tmp_path):
    build = tmp_path / "build"
    first = load(
        files[0], "wiki", encoder=an_encoder(), queries=files[1], store=store, options=LoadOptions(build=build)
    ).report
    rows, card = rows_of(store), store.card("wiki")
    encoder = an_encoder()
    again = load(
        files[0], "wiki", encoder=encoder, queries=files[1], store=store, options=LoadOptions(build=build)
    ).report
    assert encoder.texts_seen == 0
    same(rows, rows_of(store))
    assert store.card("wiki") == card
    assert again.unchanged and not first.unchanged
    assert (again.passages, again.counts, again.unused_queries) == (first.passages, first.counts, first.unused_queries)


SETTINGS = {
    "recipe": {"recipe": Recipe(alpha=0.2)},
    "passages' means": {"options": LoadOptions(passage_calibration=0.5)},
    "hybrid": {"options": LoadOptions(hybrid=Hybrid("none"))},
    "language": {"options": LoadOptions(default_lang="sw")},
    "force": {"options": LoadOptions(force=True)},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_load_that_is_not_the_same_is_written_and_says_what_it_replaces(store, files, setting):
    load(files[0], "wiki", encoder=an_encoder(), queries=files[1], store=store)
    encoder = an_encoder()
    assert load(files[0], "wiki", encoder=encoder, queries=files[1], store=store).report.unchanged
    assert encoder.texts_seen == 0 and store.version("wiki") == "v0001"
    given = {"encoder": an_encoder(), "queries": files[1], "store": store, **SETTINGS[setting]}
    report = load(files[0], "wiki", **given).report
    assert not report.unchanged and store.version("wiki") == "v0002"
    assert report.replaced.startswith("v0001 (5 passages, ha, sw queries at α 0.3, ")
    assert report.replaced.endswith("): the same passages, by other options or by --force")
    if setting != "force":
        assert load(files[0], "wiki", **given).report.unchanged
    without = load(files[0], "wiki", **given | {"queries": None}).report
    assert without.replaced.endswith("): other passages, queries or encoder")
    after = load(files[0], "wiki", encoder=an_encoder(), store=store, options=LoadOptions(force=True)).report.replaced
    assert after.split(", ")[1] == "no queries"


@pytest.mark.parametrize("change", ["corpus", "queries", "meta", "encoder", "layout", "lost point"])
def test_a_changed_input_or_a_damaged_collection_is_loaded_again(files, tmp_path, change):
    with ServerStore.connect(":memory:") as store:
        load(files[0], "wiki", encoder=an_encoder(), queries=files[1], store=store)
        encoder = HashEncoder(dim=DIM, name="other") if change == "encoder" else an_encoder()
        if change == "corpus":
            write(files[0], [*CORPUS[:-1], {**CORPUS[-1], "text": "Sugar dissolves too"}])
        elif change == "meta":
            write(files[0], [*CORPUS[:-1], {**CORPUS[-1], "year": 1}])
        elif change == "queries":
            write(files[1], QUERIES[:-1])
        elif change == "layout":
            store.options = CollectionOptions(hnsw_m=8)
        elif change == "lost point":
            store._client.delete("wiki__v0001", [str(point_id("salt"))])
        report = load(files[0], "wiki", encoder=encoder, queries=files[1], store=store).report
        assert not report.unchanged and store.count("wiki") == 5 and report.counts["read"] == 5


def test_a_card_of_before_is_written_once_more(files):
    with ServerStore.connect(":memory:") as store:
        load(files[0], "wiki", encoder=an_encoder(), store=store)
        old = replace(store.card("wiki"), inputs="")
        store._names.write_metadata("wiki__v0001", {CARD_KEY: old.to_json()})
        assert not load(files[0], "wiki", encoder=an_encoder(), store=store).report.unchanged
        assert load(files[0], "wiki", encoder=an_encoder(), store=store).report.unchanged


def test_another_recipe_encodes_nothing(files, tmp_path):
    build = tmp_path / "build"
    with ServerStore.connect(":memory:") as store:
        load(files[0], "wiki", encoder=an_encoder(), queries=files[1], store=store, options=LoadOptions(build=build))
        encoder = an_encoder()
        for recipe in RECIPES[1:]:
            load(
                files[0],
                "wiki",
                encoder=encoder,
                queries=files[1],
                store=store,
                recipe=recipe,
                options=LoadOptions(build=build),
            )
            close_to(rows_of(store), twin(CORPUS, QUERIES, recipe))
        assert encoder.texts_seen == 0


CHANGES = {
    "another text": ([*CORPUS[:2], {**CORPUS[2], "text": "Die Alpen sind hoch"}, *CORPUS[3:]], QUERIES, 3),
    "another query": (CORPUS, [{"id": "nile", "generated_queries": {"sw": ["nile ni nini"]}}, *QUERIES[1:]], 1),
    "one more": ([*CORPUS, {"id": "new", "text": "One more passage", "lang": "en"}], QUERIES, 6),
    "one less": (CORPUS[:-1], QUERIES, 5),
    "another order": (CORPUS[::-1], QUERIES, 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_corpus_is_refused_with_the_users_build_folder(files, tmp_path, change):
    corpus, queries, first = CHANGES[change]
    build = tmp_path / "build"
    with ServerStore.connect(":memory:") as store:
        load(files[0], "wiki", encoder=an_encoder(), queries=files[1], store=store, options=LoadOptions(build=build))
        rows = rows_of(store)
        write(files[0], corpus)
        write(files[1], queries)
        encoder = an_encoder()
        with pytest.raises(MismatchError) as caught:
            load(files[0], "wiki", encoder=encoder, queries=files[1], store=store, options=LoadOptions(build=build))
        assert str(caught.value) == (
            f"The corpus or the queries changed since the vectors in {build} were made (first at passage {first}): "
            f"use another --build folder, with --reuse {build} to encode only what changed, or remove that one."
        )
        assert encoder.texts_seen == 0
        same(rows, rows_of(store))


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_corpus_encodes_only_what_changed(files, tmp_path, change):
    corpus, queries, _ = CHANGES[change]
    with ServerStore.connect(":memory:") as store:
        load(
            files[0],
            "wiki",
            encoder=an_encoder(),
            queries=files[1],
            store=store,
            options=LoadOptions(build=tmp_path / "old"),
        )
        write(files[0], corpus)
        write(files[1], queries)
        encoder = an_encoder()
        report = load(
            files[0],
            "wiki",
            encoder=encoder,
            queries=files[1],
            store=store,
            options=LoadOptions(build=tmp_path / "new", reuse=[tmp_path / "old"]),
        ).report
        close_to(rows_of(store), twin(corpus, queries, Recipe()))
    assert encoder.texts_seen == {"another text": 2, "another query": 2, "one more": 1}.get(change, 0)
    assert report.reused == len(corpus) - (change in ("another text", "another query", "one more"))


class Stop(Exception):
    """Stands for anything that ends a run."""


def stop_at(stage):
    """A progress that ends the load at the first report of a stage that has something done."""

    def progress(name, done, total):
        if name == stage and done:
            raise Stop

    return progress


@pytest.mark.parametrize("stage", ["encoding", "writing", "indexing"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_corpus_is_begun_anew_in_our_build_folder(files, change, stage, monkeypatch):
    monkeypatch.setattr(building, "WINDOW", 2)
    corpus, queries, _ = CHANGES[change]
    with ServerStore.connect(":memory:") as store:
        with pytest.raises(Stop):
            load(files[0], "wiki", encoder=an_encoder(), queries=files[1], store=store, progress=stop_at(stage))
        write(files[0], corpus)
        write(files[1], queries)
        rejects = Rejects()
        report = load(files[0], "wiki", encoder=an_encoder(), queries=files[1], store=store, rejects=rejects).report
        close_to(rows_of(store), twin(corpus, queries, Recipe()))
        assert report.counts["read"] == report.counts["accepted"] == rejects.accepted == len(corpus)
    assert list((cache_folder() / "builds").iterdir()) == []


@pytest.mark.parametrize("kind", ["embedded", "server"])
def test_other_fields_and_languages_count_as_a_change_while_writing(kind, files, tmp_path, monkeypatch):
    """They are not encoded, but half of the points must not keep the old ones."""
    monkeypatch.setattr(building, "WINDOW", 2)
    monkeypatch.setattr(writing, "COMMIT_EVERY", 2)
    untagged = [{key: value for key, value in record.items() if key != "lang"} for record in CORPUS]
    write(files[0], untagged)
    with a_store(kind, tmp_path / "store") as store:
        arguments = {"encoder": an_encoder(), "store": store}
        french, german = (LoadOptions(default_lang=lang, build=tmp_path / "build") for lang in ("fr", "de"))
        with pytest.raises(Stop):
            load(files[0], "wiki", progress=stop_at("writing"), **arguments, options=french)
        load(files[0], "wiki", **arguments, options=german)
        assert {payload["meta"]["lang"] for payload, _ in rows_of(store).values()} == {"de"}
        write(files[0], [{**record, "edition": 1} for record in untagged])
        with pytest.raises(Stop):
            load(files[0], "wiki", progress=stop_at("writing"), **arguments, options=german)
        write(files[0], [{**record, "edition": 2} for record in untagged])
        load(files[0], "wiki", **arguments, options=german)
        assert {payload["meta"]["edition"] for payload, _ in rows_of(store).values()} == {2}
        assert arguments["encoder"].texts_seen == len(CORPUS)


def test_a_damaged_build_folder_of_ours_is_begun_anew(files):
    with ServerStore.connect(":memory:") as store:
        with pytest.raises(Stop):
            load(files[0], "wiki", encoder=an_encoder(), store=store, progress=stop_at("writing"))
        (manifest,) = (cache_folder() / "builds").glob("*/vectors/manifest.json")
        manifest.write_bytes(b"{")
        load(files[0], "wiki", encoder=an_encoder(), store=store)
        close_to(rows_of(store), twin(CORPUS, [], Recipe()))


def test_two_loads_of_one_name_do_not_share_our_build_folder(files):
    folder = cache_folder() / "builds" / f"wiki-{an_encoder().facts.fingerprint}"
    folder.mkdir(parents=True)
    with lock_folder(folder), ServerStore.connect(":memory:") as store:
        with pytest.raises(
            LockedError, match=r"Collection 'wiki' is being loaded already: .* process \d+ on .*; .*--build"
        ):
            load(files[0], "wiki", encoder=an_encoder(), store=store)
        load(files[0], "wiki", encoder=an_encoder(), store=store, options=LoadOptions(build=folder.with_name("own")))


def test_queries_of_other_passages_are_counted(files, tmp_path):
    extra = write(tmp_path / "extra.jsonl", [{"id": f"x{i}", "generated_queries": {"sw": ["swali"]}} for i in range(3)])
    with ServerStore.connect(":memory:") as store:
        report = load(files[0], "wiki", encoder=an_encoder(), queries=[files[1], extra], store=store).report
        assert report.unused_queries == 3
        assert report.queries == {"ha": 4, "sw": 4}
        close_to(rows_of(store), twin(CORPUS, QUERIES, Recipe()))


def test_languages_restrict_vectors_payload_card_and_report(store, files):
    recipe = Recipe(query_langs=("sw",))
    report = load(files[0], "wiki", encoder=an_encoder(), queries=files[1], recipe=recipe, store=store).report
    rows = rows_of(store)
    close_to(rows, twin(CORPUS, QUERIES, recipe))
    assert {key: payload["meta"]["query_langs"] for key, (payload, _) in rows.items()} == {
        "nile": ["sw"], "amazon": ["sw"], "alps": [], "moon": [], "salt": ["sw"],
    }  # fmt: skip
    card = store.card("wiki")
    assert (card.query_langs, set(card.query_means), report.queries) == (("sw",), {"sw"}, {"sw": 4})


def test_a_language_without_queries_is_refused_before_writing(files):
    with ServerStore.connect(":memory:") as store:
        with pytest.raises(DataError, match=r"no generated queries in yo \(languages at hand: ha, sw\)"):
            load(
                files[0],
                "wiki",
                encoder=an_encoder(),
                queries=files[1],
                store=store,
                recipe=Recipe(query_langs=("yo",)),
            )
        assert store.names() == []


@pytest.mark.parametrize("window", [512, 1])
def test_sum_with_unequal_counts_is_refused_and_the_old_version_served(store, files, tmp_path, monkeypatch, window):
    """Also when every window that is written at once has equal counts within."""
    monkeypatch.setattr(building, "WINDOW", window)
    load(files[0], "wiki", encoder=an_encoder(), store=store, options=LoadOptions(build=tmp_path / "plain"))
    rows = rows_of(store)
    with pytest.raises(MismatchError, match=r"pool 'sum' needs equally many queries for every passage, found 0 to 3"):
        load(files[0], "wiki", encoder=an_encoder(), queries=files[1], store=store, recipe=Recipe(pool="sum"))
    same(rows, rows_of(store))
    versions = [path.name for path in (tmp_path / "store").glob("wiki/v*")]
    assert len(versions) < 2, "nothing is begun that cannot be finished"


def test_plain_load_under_sum_minds_no_counts(files):
    with ServerStore.connect(":memory:") as store:
        load(
            files[0], "wiki", encoder=an_encoder(), queries=files[1], store=store, recipe=Recipe(pool="sum", alpha=0.0)
        )
        close_to(rows_of(store), twin(CORPUS, [], Recipe(alpha=0.0)))


def test_generated_queries_refine_the_calibration(files):
    with ServerStore.connect(":memory:") as store:
        card = load(files[0], "wiki", encoder=an_encoder(), queries=files[1], store=store).collection.card
    encoder = an_encoder()
    for lang in ("sw", "ha"):
        texts = [q for record in QUERIES for q in record["generated_queries"].get(lang, [])]
        total, n = encoder.encode_queries(texts, calibrate=False).sum(axis=0), len(texts)
        if lang == "sw":
            total, n = total / n * 3 + 3 * bank().means["sw"], 6
        stored = unpack_means(card.query_means, dim=DIM).means[lang]
        np.testing.assert_allclose(stored, total / n, atol=1e-3)  # float16


@pytest.mark.parametrize("n", [3, 30])
def test_users_questions_win_over_bank_and_generated(files, tmp_path, n):
    """30 questions stand for themselves; fewer are added to what the bank has."""
    texts = [f"swali namba {i}" for i in range(n)]
    asked = [{"id": i, "text": text, "lang": "sw"} for i, text in enumerate(texts)]
    questions = write(tmp_path / "asked.jsonl", [*asked, {"id": "y", "text": "ibeere kan", "lang": "yo"}])
    own = an_encoder().encode_queries(texts, calibrate=False).astype(np.float64)
    sw = own.mean(axis=0) if n == 30 else (3 * bank().means["sw"] + own.sum(axis=0)) / 6
    yo = an_encoder().encode_queries(["ibeere kan"], calibrate=False)[0]
    with ServerStore.connect(":memory:") as store:
        card = load(
            files[0], "wiki", encoder=an_encoder(), queries=files[1], store=store, questions=questions
        ).collection.card
        means = unpack_means(card.query_means, dim=DIM).means
        assert set(means) == {"ha", "sw", "yo"}
        np.testing.assert_allclose(means["sw"], sw, atol=1e-3)
        np.testing.assert_allclose(means["yo"], yo, atol=1e-3)
        close_to(rows_of(store), twin(CORPUS, QUERIES, Recipe(), asked={"sw": sw}))


def test_questions_without_any_language_are_refused(files, tmp_path):
    questions = write(tmp_path / "asked.jsonl", [{"id": 1, "text": "1234 5678"}])
    with (
        ServerStore.connect(":memory:") as store,
        pytest.raises(DataError, match=r"None of the questions in .* has a lan"),
    ):
        load(files[0], "wiki", encoder=an_encoder(), store=store, questions=questions)


def test_a_corpus_without_queries(store, files):
    report = load(files[0], "wiki", encoder=an_encoder(), store=store).report
    close_to(rows_of(store), twin(CORPUS, [], Recipe()))
    card = store.card("wiki")
    assert (card.query_langs, card.query_means, report.queries, report.unused_queries) == ((), {}, {}, 0)


def test_missing_languages_are_detected(files, tmp_path):
    text = "Die Alpen sind das höchste Gebirge in Europa und liegen zwischen Frankreich und Slowenien."
    corpus = write(tmp_path / "c.jsonl", [{"id": "a", "text": text}, {"id": "b", "text": "12 34"}])
    with ServerStore.connect(":memory:") as store:
        load(corpus, "wiki", encoder=an_encoder(), store=store)
        assert {key: payload["meta"]["lang"] for key, (payload, _) in rows_of(store).items()} == {"a": "de", "b": "und"}


def test_an_empty_corpus_is_refused_and_the_old_version_served(store, files):
    load(files[0], "wiki", encoder=an_encoder(), store=store)
    rows = rows_of(store)
    files[0].write_text("\n\n")
    with pytest.raises(DataError) as caught:
        load(files[0], "wiki", encoder=an_encoder(), store=store)
    expected = f'{files[0]} holds no passage that can be used; expected lines such as {{"id": "1", "text": "…"}}.'
    assert str(caught.value) == expected
    same(rows, rows_of(store))


def test_a_duplicate_id_with_other_text_is_refused_by_line(files):
    write(files[0], [*CORPUS, {"id": "nile", "text": "something else"}])
    with ServerStore.connect(":memory:") as store, pytest.raises(DataError) as caught:
        load(files[0], "wiki", encoder=an_encoder(), store=store)
    told = f"{files[0]} line 6: id 'nile' appeared before with other content; correct the data."
    assert str(caught.value) == told


def test_bad_lines_are_counted_and_kept_for_every_input(files, tmp_path):
    with files[0].open("a") as file:
        file.write("{\n\n" + json.dumps(CORPUS[0]) + "\n" + json.dumps({"id": "nile", "text": "other"}) + "\n")
    with files[1].open("a") as file:
        file.write('{"id": "nile"}\n')
    questions = write(tmp_path / "asked.jsonl", [{"id": 1, "text": "swali", "lang": "sw"}, {"id": 2, "lang": "sw"}])
    rejects = Rejects(2, tmp_path / "bad.jsonl")
    with ServerStore.connect(":memory:") as store:
        for _ in range(2):  # resumed or not
            report = load(
                files[0],
                "wiki",
                encoder=an_encoder(),
                queries=files[1],
                store=store,
                questions=questions,
                rejects=rejects,
                options=LoadOptions(build=tmp_path / "build", force=True),
            ).report
            assert report.counts == {"read": 9, "accepted": 5, "duplicates": 1, "blank": 1, "rejected": 2}
            assert report.rejected_lines == 2
            rejects = Rejects(2, tmp_path / "bad.jsonl")
        assert len(rows_of(store)) == 5
    kept = {path.name: path.read_text().count("\n") for path in tmp_path.glob("bad*")}
    assert kept == {"bad.jsonl": 2, "bad.queries.jsonl": 1, "bad.questions.jsonl": 1}


def test_one_bad_line_too_many_in_the_queries_is_refused(files):
    with files[1].open("a") as file:
        file.write('{"id": "nile"}\n{}\n')
    with ServerStore.connect(":memory:") as store, pytest.raises(DataError, match=r"line 5: .* line 6: "):
        load(files[0], "wiki", encoder=an_encoder(), queries=files[1], store=store, rejects=Rejects(1))


def test_shards_in_the_papers_schema_are_corpus_and_queries_in_one(tmp_path):
    folder = tmp_path / "shards"
    records = [
        {"docid": p["id"], "title": p.get("title", ""), "text": p["text"], "generated_queries": q["generated_queries"]}
        for p, q in zip(CORPUS, EVEN, strict=True)
    ]
    shards = [write(folder / "shard_0.jsonl", records[:3]), folder / "shard_1.jsonl.gz"]
    lines = "".join(json.dumps(record) + "\n" for record in records[3:])
    shards[1].write_bytes(gzip.compress(lines.encode()))
    recipe = Recipe(alpha=0.01, pool="sum")
    with ServerStore.connect(":memory:") as store:
        report = load(
            folder,
            "paper",
            encoder=an_encoder(),
            queries=shards,
            recipe=recipe,
            store=store,
            options=LoadOptions(default_lang="en"),
        ).report
        rows = rows_of(store, "paper")
        close_to(rows, twin(CORPUS, EVEN, recipe))
        assert report.queries == {"ha": 5, "sw": 10}
        assert set(rows["nile"][0]["meta"]) == {"lang", "title", "query_langs"}


def test_wrong_inputs_are_refused_before_anything_is_opened(tmp_path, files):
    class Untouchable:
        def __getattr__(self, name):
            raise AssertionError(name)

    encoder = an_encoder()
    for arguments, said in (
        ({"corpus": tmp_path / "corpsu.jsonl"}, "There is no file .*corpsu.jsonl; that folder has corpus.jsonl"),
        ({"name": "a/b"}, "'a/b' cannot name a collection"),
        ({"queries": tmp_path / "querys.jsonl"}, "There is no file .*; that folder has queries.jsonl"),
        ({"questions": tmp_path / "none"}, "There is no file"),
        ({"corpus": tmp_path / "corpus.docx"}, "There is no file"),
    ):
        given = {"corpus": files[0], "name": "wiki", **arguments}
        with pytest.raises(DataError, match=said):
            load(given.pop("corpus"), given.pop("name"), encoder=encoder, store=Untouchable(), **given)
    assert encoder.texts_seen == 0 and not cache_folder().exists()


def in_memory(kind):
    """The corpus and its queries as a caller may have them."""
    passages = [
        Passage(
            r["id"], r["text"], r.get("title", ""), r["lang"],
            {**r.get("meta", {}), **{key: r[key] for key in r if key == "year"}},
        )
        for r in CORPUS
    ]  # fmt: skip
    queries = [GeneratedQueries(r["id"], r["generated_queries"]) for r in QUERIES]
    if kind == "records":
        return passages, queries
    if kind == "generators of dicts":
        return iter(CORPUS), (record for record in QUERIES)
    rows = [{key: r.get(key) for key in ("id", "title", "text", "lang", "year", "meta")} for r in CORPUS]
    index = pa.array(range(len(CORPUS)))  # what pandas adds for an index that is not plain
    return pa.Table.from_pylist(rows).append_column("__index_level_0__", index), Frame(pa.Table.from_pylist(QUERIES))


class Frame:
    """A data frame by nothing but Arrow's interface."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("kind", ["records", "generators of dicts", "tables"])
def test_a_corpus_in_memory_is_what_its_file_is(store, files, tmp_path, kind):
    from_file = load(files[0], "wiki", encoder=an_encoder(), queries=files[1], store=store)
    rows = rows_of(store)
    corpus, queries = in_memory(kind)
    forced = LoadOptions(force=True)
    made = load(corpus, "wiki", encoder=an_encoder(), queries=queries, store=store, options=forced)
    same(rows, rows_of(store))
    assert made.report.queries == from_file.report.queries and made.report.counts == from_file.report.counts
    assert replace(made.collection.card, created="", version="") == replace(
        from_file.collection.card, created="", version=""
    )


def test_bad_records_in_memory_are_counted_or_refused(store):
    bad = [{"id": "1", "text": "one"}, {"id": "2"}]
    report = load(bad, "wiki", encoder=an_encoder(), store=store, rejects=Rejects(1)).report
    assert report.counts["rejected"] == 1 and report.passages == 1
    with pytest.raises(DataError, match=r"^Corpus record 2: "):
        load(bad, "wiki", encoder=an_encoder(), store=store)
    with pytest.raises(DataError, match=r"^Corpus record 1: no id .* found 'text'; correct the data\.$"):
        load([{"text": "one"}], "wiki", encoder=an_encoder(), store=store)
    with pytest.raises(DataError, match="Record 1 in memory cannot be written as JSON"):
        load([{"id": "1", "text": "one", "more": object()}], "wiki", encoder=an_encoder(), store=store)


def test_a_pipe_is_refused_because_it_is_read_twice(tmp_path):
    import os

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ServerStore.connect(":memory:") as store, pytest.raises(DataError) as caught:
        load(pipe, "wiki", encoder=an_encoder(), store=store)
    assert str(caught.value) == f"{pipe} is a pipe or a device, which is read once: write it to a file first."


def test_a_store_of_our_own_is_closed_after_an_error(files, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setenv("XQG_VDB_PATH", str(tmp_path / "store"))
    monkeypatch.setattr(EmbeddedStore, "close", lambda self: closed.append(self))
    with pytest.raises(DataError):
        load(tmp_path / "nothing.jsonl", "wiki", encoder=an_encoder())
    assert len(closed) == 1
    with pytest.raises(DataError):
        load(tmp_path / "nothing.jsonl", "wiki", encoder=an_encoder(), store=EmbeddedStore(tmp_path / "own"))
    assert len(closed) == 1, "the caller's store is the caller's to close"


def test_progress_of_a_resumed_load_starts_where_it_stopped(files, tmp_path, monkeypatch):
    for module, name in ((building, "WINDOW"), (writing, "COMMIT_EVERY")):
        monkeypatch.setattr(module, name, 2)
    seen = defaultdict(list)
    with ServerStore.connect(":memory:") as store:
        arguments = {
            "encoder": an_encoder(),
            "queries": files[1],
            "store": store,
            "options": LoadOptions(build=tmp_path / "build"),
        }
        with pytest.raises(Stop):
            load(files[0], "wiki", progress=stop_at("encoding"), **arguments)
        with pytest.raises(Stop):
            load(files[0], "wiki", progress=stop_at("writing"), **arguments)

        def note(stage, done, total):
            seen[stage].append((done, total))

        load(files[0], "wiki", progress=note, **arguments)
    assert seen == {
        "encoding": [(0, 5), (2, 5), (4, 5), (5, 5)], "writing": [(2, 5), (4, 5), (5, 5)],
        "indexing": [(0, 5), (5, 5)],
    }  # fmt: skip


words = st.lists(st.sampled_from(["maji", "mto", "nile", "jua", "water", "moon", "ü", "河"]), min_size=1, max_size=4)
texts = words.map(" ".join)


@st.composite
def inputs(draw):
    """A corpus (its languages given, detection is slow) and queries for some of its passages and for others."""
    n = draw(st.integers(1, 9))
    corpus = [{"id": f"p{i}", "text": draw(texts), "lang": "en", "n": i} for i in range(n)]
    ids = draw(st.lists(st.sampled_from([*(p["id"] for p in corpus), "other"]), unique=True))
    langs = st.dictionaries(st.sampled_from(["sw", "ha", "yo"]), st.lists(texts, min_size=1, max_size=3), max_size=3)
    return corpus, [{"id": docid, "generated_queries": draw(langs)} for docid in ids]


class Failing(HashEncoder):
    """Encodes so many texts, then raises."""

    def __init__(self, left):
        super().__init__(dim=DIM, calibration=0.7, language_means=bank())
        self.left = left

    def _encode(self, texts):
        if len(texts) > self.left:
            raise Stop
        self.left -= len(texts)
        return super()._encode(texts)


def stop_after(calls):
    """A progress that lets so many calls pass."""
    left = [calls]

    def progress(stage, done, total):
        left[0] -= 1
        if left[0] < 0:
            raise Stop

    return progress


def check_interrupted(kind, given_inputs, stops):
    corpus, queries = given_inputs
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XQG_VDB_CACHE", f"{folder}/cache")
        for module, name, size in ((building, "WINDOW", 2), (writing, "COMMIT_EVERY", 2)):
            patch.setattr(module, name, size)
        files = write(Path(folder) / "corpus.jsonl", corpus), write(Path(folder) / "queries.jsonl", queries)
        table = files[1] if queries else None
        with a_store(kind, Path(folder) / "unbroken") as store:
            load(files[0], "wiki", encoder=an_encoder(), queries=table, store=store)
            expected = rows_of(store)
            close_to(expected, twin(corpus, queries, Recipe()))
            card = store.card("wiki")
        with a_store(kind, Path(folder) / "broken") as store:
            for texts_left, calls in stops:
                try:
                    load(files[0], "wiki", encoder=Failing(texts_left), queries=table, store=store,
                         progress=stop_after(calls))  # fmt: skip
                except Stop:
                    assert store.names() == [] or store.count("wiki") == len(corpus)
            load(files[0], "wiki", encoder=an_encoder(), queries=table, store=store)
            # the client's local mode divides by a float64 norm where a point exists, by a float32 one where it is new
            same(expected, rows_of(store), atol=1e-7 if kind == "server" else 0.0)
            ours = store.card("wiki")
            assert replace(ours, created="", version="") == replace(card, created="", version="")
        assert list(Path(folder, "cache", "builds").iterdir()) == []


stops = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 14)), max_size=4)


@given(inputs(), stops)
@settings(max_examples=25, deadline=None)
def test_interrupted_loads_end_like_an_unbroken_one_on_a_server(given_inputs, stops):
    check_interrupted("server", given_inputs, stops)


@given(inputs(), stops)
@example(([{"id": f"p{i}", "text": f"t{i}", "lang": "en"} for i in range(7)], []), [(3, 99), (99, 5), (99, 7), (99, 9)])
@settings(max_examples=2, deadline=None)
def test_interrupted_loads_end_like_an_unbroken_one_embedded(given_inputs, stops):
    check_interrupted("embedded", given_inputs, stops)


def test_collection_is_bound_to_the_given_client(files):
    client = QdrantClient(":memory:")
    collection = load(files[0], "wiki", encoder=an_encoder(), store=ServerStore(client)).collection
    assert isinstance(collection, Collection)
    assert client.count("wiki").count == 5
    client.close()


def test_a_load_killed_while_it_tidies_up_is_no_obstacle(store, files, tmp_path, monkeypatch):
    """Kept vectors are removed in one step as far as the next load can see, whichever file went first."""
    corpus, queries = files
    remove = load_folder.shutil.rmtree

    def killed_amid(path, ignore_errors=False):
        for manifest in path.rglob("manifest.json"):
            manifest.unlink()
            raise KeyboardInterrupt
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(load_folder.shutil, "rmtree", killed_amid)
    with pytest.raises(KeyboardInterrupt):
        load(corpus, "wiki", encoder=HashEncoder(), store=store, queries=queries)
    monkeypatch.setattr(load_folder.shutil, "rmtree", remove)
    builds = tmp_path / "cache" / "builds"
    assert list(builds.rglob("*.npz")), "nothing was left to stumble over"
    assert load(corpus, "wiki", encoder=HashEncoder(), store=store, queries=queries).collection.count() == len(CORPUS)
    assert not list(builds.iterdir())
