"""The steps of a load over Arrow tables: what they make on a server is what `load` makes there, bit for bit."""

import json
import os
import pickle
import signal
import sys
from dataclasses import replace
from pathlib import Path

import killing
import numpy as np
import pyarrow as pa
import pytest
from fake_qdrant import FakeQdrant, Fault
from tiny_model import WORDS, write_tiny_encoder

from xqg_vdb import Encoder, Recipe
from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.errors import DataError, MismatchError, XqgError
from xqg_vdb.generate.filters import QueryFilter
from xqg_vdb.index import batches
from xqg_vdb.index import build as building
from xqg_vdb.index.load import load
from xqg_vdb.index.write import card_of, finished
from xqg_vdb.store import open_store
from xqg_vdb.testing import HashEncoder

WINDOW = 16


def passages(n=40):
    texts = [f"{WORDS[5 + i % 7]} {WORDS[9 + i % 11]} {i}" for i in range(n)]
    return [
        {"id": f"p{i}", "title": "a title" * (i % 3 == 0), "text": text, "lang": "en", "page": i}
        for i, text in enumerate(texts)
    ]


def queries(n=40):
    asked = {f"p{i}": {"sw": [f"mto namba {i}", "maji"]} for i in range(0, n, 2)}
    for i in range(0, n, 3):
        asked.setdefault(f"p{i}", {})["ha"] = [f"kogi lamba {i}"]
    return asked


def tables(n=40):
    """The corpus in tables of a window each, queries as JSON."""
    asked = queries(n)
    rows = [{**row, "generated_queries": json.dumps(asked.get(row["id"]) or None)} for row in passages(n)]
    return [pa.Table.from_pylist(rows[start : start + WINDOW]) for start in range(0, n, WINDOW)]


def run(url, name, encoder, steps, *, parts=None, recipe=None):
    """What an engine's driver does, in one process, every step pickled as an engine would."""
    encode = pickle.loads(pickle.dumps(batches.Encode(steps, encoder.facts.fingerprint)))
    encoded = [encode(table) for table in parts or tables()]
    count, digest, whole, generated, _ = batches.combined([batches.totals(table).to_pylist()[0] for table in encoded])
    card = card_of(encoder, rows_digest=digest, recipe=recipe or Recipe(), distance="cosine", generated=generated)
    store = open_store(url=url)
    with store.writer(name, card=card) as writer:
        fuse, upsert = pickle.loads(pickle.dumps((batches.Fuse(card), batches.Upsert(url, writer.version, card))))
        said = [upsert(fuse(table)).to_pylist()[0] for table in reversed(encoded)]
        assert sum(part["points"] for part in said) == count
        writer.publish(finished(card, count=count, digest=whole))
    return store


def points_of(store, name):
    return {
        point.id: (dict(point.payload), {key: rows.tobytes() for key, rows in point.vectors.items()})
        for point in store.scroll(name, with_vectors=True)
    }


def test_the_steps_make_what_a_load_makes(tmp_path, monkeypatch):
    """With an int8 model, whose activations are scaled by batch: equal windows, equal bits."""
    monkeypatch.setattr(building, "WINDOW", WINDOW)
    write_tiny_encoder(tmp_path / "tiny", calibration=0.5)
    encoder = Encoder(tmp_path / "tiny")
    records = [{"id": docid, "generated_queries": asked} for docid, asked in queries().items()]
    with FakeQdrant() as fake:
        store = run(fake.url, "steps", encoder, str(tmp_path / "tiny"))
        load(passages(), "whole", encoder=encoder, queries=records, store=store)
        steps, whole = store.card("steps"), store.card("whole")
        assert (steps.digest, steps.count, steps.query_means) == (whole.digest, 40, whole.query_means)
        assert points_of(store, "steps") == points_of(store, "whole")
        store.close()


def test_what_an_encoded_table_holds_comes_back():
    encoder = HashEncoder(dim=8)
    encode = batches.Encode(encoder, encoder.facts.fingerprint)
    table = encode(tables()[0])
    window, found = batches._decoded(table.slice(3, 5))
    whole, everything = batches._decoded(table)
    assert found == everything[3:8] and found[0].meta == {"page": 3}
    np.testing.assert_array_equal(window.passages, encoder.encode_passages([row.title_and_text for row in found]))
    for lang, (sums, counts) in window.sums.items():
        np.testing.assert_array_equal(sums, whole.sums[lang][0][3:8])
        np.testing.assert_array_equal(counts, whole.sums[lang][1][3:8])


@pytest.mark.parametrize(
    ("given", "kind", "expected"),
    [
        ({"swa": ["maji", " "]}, None, {"sw": ("maji",)}),
        ([("swa", ["maji", " "])], pa.map_(pa.string(), pa.list_(pa.string())), {"sw": ("maji",)}),
        ('{"swa": ["maji", " "]}', pa.string(), {"sw": ("maji",)}),
        (None, pa.null(), None),
    ],
)
def test_queries_come_in_every_form_of_a_column(given, kind, expected):
    column = pa.array([given], kind)
    ((passage, found),) = batches.rows_of(
        pa.table(
            {"id": ["1"], "text": ["The river runs through the town and into the sea."], "generated_queries": column}
        )
    )
    assert (passage.id, passage.lang) == ("1", "en")
    assert (found and found.queries) == expected


def query_files(folder, n=40):
    """The queries in two files, one a language."""
    for lang in ("sw", "ha"):
        lines = [{"id": i, "generated_queries": {lang: q[lang]}} for i, q in queries(n).items() if lang in q]
        (folder / f"{lang}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder / "sw.jsonl"), str(folder / "ha.jsonl")


def test_queries_in_files_are_those_of_the_column(tmp_path):
    encoder = HashEncoder(dim=8)
    whole = batches.Encode(encoder, encoder.facts.fingerprint)(tables()[0])
    apart = batches.Encode(encoder, encoder.facts.fingerprint, queries=query_files(tmp_path))
    assert apart(tables()[0].drop_columns(["generated_queries"])).equals(whole)
    with pytest.raises(DataError, match="has generated_queries, and files of queries are given"):
        apart(tables()[0])


def test_a_work_folder_keeps_what_was_encoded(tmp_path):
    encoder, plain = HashEncoder(dim=8), HashEncoder(dim=8)
    encode = batches.Encode(encoder, encoder.facts.fingerprint, work=str(tmp_path))
    parts = [encode(table) for table in tables()]
    assert encoder.texts_seen
    encoder.texts_seen = 0
    assert [encode(table).equals(part) for table, part in zip(tables(), parts, strict=True)] == [True] * 3
    assert encoder.texts_seen == 0
    (first,) = parts[0]["file"].to_pylist()
    whole = batches.Encode(plain, plain.facts.fingerprint)(tables()[0])
    assert batches._read(first).equals(whole)
    good = Path(first).read_bytes()
    for damaged in (good[:100], good[:400] + bytes([good[400] ^ 1]) + good[401:], b""):
        Path(first).write_bytes(damaged)
        assert encode(tables()[0]).equals(parts[0]) and Path(first).read_bytes() == good
    card = card_of(encoder, rows_digest="", recipe=Recipe(), distance="cosine", generated=LanguageMeans())
    assert batches.Fuse(card)(parts[0].select(["file"])).equals(batches.Fuse(card)(whole))


def test_passages_of_one_id_are_named_by_their_rows():
    encoder = HashEncoder(dim=8)
    encode = batches.Encode(encoder, encoder.facts.fingerprint)
    parts = [batches.totals(encode(table)).to_pylist()[0] for table in (tables()[0], tables()[0].slice(3, 2))]
    with pytest.raises(DataError, match="Rows 4 and 17 of the dataset have the same id"):
        batches.combined(parts)


def test_generated_queries_are_those_of_a_run(tmp_path, tiny_generator):
    """In batches of the generator, so that they are equal byte for byte; a work folder has them the second time."""
    from generation_cases import write_corpus

    from xqg_vdb.generate.local import open_generator
    from xqg_vdb.generate.run import Job, generate_file

    model = tiny_generator("mt5")[1]
    corpus, job = write_corpus(tmp_path / "corpus.jsonl", 40), Job(("de", "sw"), 2, query_filter=QueryFilter())
    generator = open_generator(model, query_langs=job.query_langs)
    rules = replace(job, query_filter=QueryFilter(examples=generator.examples))
    generate_file(corpus, tmp_path / "out.jsonl", generator=generator, job=rules)
    size, rows = generator.batch_size(job.query_langs, 2) * 2, list(map(json.loads, corpus.read_text().splitlines()))
    parts = [pa.Table.from_pylist(rows[start : start + size]) for start in range(0, 40, size)]
    generate = batches.GenerateQueries(str(model), generator.fingerprint, job, work=str(tmp_path / "work"))
    for again in range(2):
        made = [row for part in parts for row in pickle.loads(pickle.dumps(generate))(part).to_pylist()]
        found = [(row["id"], json.loads(row["generated_queries"]), row["passage_digest"]) for row in made]
        lines = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
        assert found == [(line["id"], line["generated_queries"], line["passage_digest"]) for line in lines], again
    files = list((tmp_path / "work").rglob("*.parquet"))
    assert len(files) == len(parts)
    with pytest.raises(MismatchError, match="This worker's generator has the fingerprint"):
        replace(generate, fingerprint="other")(parts[0])


def test_another_encoder_and_bad_rows_are_refused(tmp_path):
    with pytest.raises(MismatchError, match=r"This worker's encoder has the fingerprint .* the driver's other"):
        batches.Encode(HashEncoder(), "other")(tables()[0])
    encode = batches.Encode(HashEncoder(), HashEncoder().facts.fingerprint)
    with pytest.raises(DataError, match="is no passage"):
        encode(pa.table({"id": ["1"], "text": [" "]}))
    with pytest.raises(DataError, match=r"queries of '1' cannot be used: generated_queries\['sw'\] must be a list"):
        encode(pa.table({"id": ["1"], "text": ["a"], "generated_queries": ['{"sw": 3}']}))


ROWS = pa.table({"id": ["a", "b", "c"], "text": ["The river runs.", "Der Fluss.", "Maji"], "lang": ["en", "de", None]})


def changed(table, names, change):
    """The table with other columns of these names."""
    return pa.table({name: change(table[name]) if name in names else table[name] for name in table.column_names})


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), None])
def test_engines_hand_tables_on_in_other_arrow_types(kind):
    """And in chunks (None), empty ones among them; lists of fixed size become lists."""
    encode, fuse = steps_of(HashEncoder(dim=8))
    encoded, points = encode(ROWS), fuse(encode(ROWS))

    def handed_on(table):
        if kind is None:
            return pa.concat_tables([table.slice(at, n) for at, n in ((0, 0), (0, 1), (1, 0), (1, 2))])
        texts = [name for name in table.column_names if table[name].type == pa.string()]
        lists = [name for name in table.column_names if pa.types.is_fixed_size_list(table[name].type)]
        cast = (lambda c: c.dictionary_encode()) if pa.types.is_dictionary(kind) else (lambda c: c.cast(kind))
        return changed(changed(table, texts, cast), lists, lambda c: c.cast(pa.list_(pa.float32())))

    assert encode(handed_on(ROWS)).equals(encoded)
    assert fuse(handed_on(encoded)).equals(points)
    with FakeQdrant() as fake, open_store(url=fake.url) as store, store.writer("w", card=fuse.card) as writer:
        upsert = batches.Upsert(fake.url, writer.version, fuse.card)
        assert upsert(handed_on(points)).to_pylist() == upsert(points).to_pylist() == [{"points": 3}]
        assert upsert(points.slice(0, 0)).to_pylist() == [{"points": 0}]


def steps_of(encoder):
    card = card_of(encoder, rows_digest="", recipe=Recipe(), distance="cosine", generated=LanguageMeans())
    return batches.Encode(encoder, encoder.facts.fingerprint), batches.Fuse(card)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda e, f: e(ROWS.drop_columns(["text"])), "no text"),
        (lambda e, f: e(pa.table([*ROWS.columns, ROWS["text"]], [*ROWS.column_names, "text"])), "two columns 'text'"),
        (lambda e, f: e(asked('{"sw": ["maji"]')), r"'{.*' in generated_queries is no JSON \("),
        (lambda e, f: replace(e, default_lang="zz!!")(ROWS), "'zz!!' is not a language code"),
        (lambda e, f: f(pa.table({"file": ["/nowhere/a.parquet"]})), "There is no folder /nowhere for a.parquet"),
        (lambda e, f: batches.combined([batches.totals(e(ROWS.slice(0, 0))).to_pylist()[0]]), "holds no passage"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(made, said):
    with pytest.raises(DataError, match=said):
        made(*steps_of(HashEncoder(dim=8)))
    assert batches.rows_of(asked(""))[0][1] is batches.rows_of(asked("null"))[0][1] is None


def asked(queries):
    return ROWS.append_column("generated_queries", pa.array([queries] * 3))


def test_a_work_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "work").write_text("mine")
    encode = replace(steps_of(HashEncoder())[0], work=str(tmp_path / "work"))
    with pytest.raises(XqgError, match=r"work.* (is not inside a folder|cannot be used)"):
        encode(ROWS)


def test_a_server_that_is_busy_is_asked_again_and_a_bad_point_is_named():
    encoder = HashEncoder()
    with FakeQdrant() as fake:
        writes = "PUT /collections/busy__v0001/points"
        fake.faults += [Fault(503, only=writes), Fault(429, headers={"Retry-After": "0"}, only=writes)]
        store = run(fake.url, "busy", encoder, encoder)
        assert store.count("busy") == 40 and not fake.faults
        fake.refused = {"p7"}
        with pytest.raises(DataError, match="Passage 'p7' cannot be stored"):
            run(fake.url, "bad", encoder, encoder)
        assert "bad" not in store.names()
        store.close()


ONE_PROCESS = """
import types
from contextlib import suppress

class Dataset:
    context = types.SimpleNamespace(execution_options=types.SimpleNamespace())
    def __init__(self, parts): self.parts = parts
    def materialize(self): return Dataset(list(self.parts()).__iter__)
    def iter_rows(self): return iter([row for part in self.parts() for row in part.to_pylist()])
    def repartition(self, *, target_num_rows_per_block, strict):
        rows, n = list(self.iter_rows()), target_num_rows_per_block
        return Dataset(lambda: [pa.Table.from_pylist(rows[at : at + n]) for at in range(0, len(rows), n)])
    def map_batches(self, step, *, fn_constructor_kwargs=None, **options):
        made = step(**fn_constructor_kwargs) if isinstance(step, type) else step
        return Dataset(lambda: map(made, self.parts()))

import pyarrow as pa
ray, sys.modules["ray.data"] = types.ModuleType("ray"), types.ModuleType("ray.data")
sys.modules["ray"], ray.data = ray, sys.modules["ray.data"]
ray.exceptions = types.SimpleNamespace(RayError=type("RayError", (Exception,), {}))
ray.data.ActorPoolStrategy = dict
ray.data.from_items = lambda rows: Dataset(lambda: [pa.Table.from_pylist(rows)])

from test_batches import passages
from xqg_vdb.index import batches
from xqg_vdb.integrations import ray as ours

ours.WINDOW = 16

def work(n, url, model, work, *files):
    ours.load_dataset(ray.data.from_items(passages(int(n))), "job", url=url, encoder=model, queries=files, work=work)
"""
"""Ray's part played in one process: all tables are written before the driver hears of the first one."""


@pytest.mark.timeout(900)  # 44 jobs, of a second each where nothing else runs
def test_a_job_that_is_killed_at_any_request_and_run_again_sends_half_as_many_more_at_most(tmp_path):
    """Whichever request its driver was about to send, or had just been answered."""
    write_tiny_encoder(tmp_path / "tiny", calibration=0.5)
    files, n = query_files(tmp_path), 40  # three tables
    with FakeQdrant() as fake, killing.Workers(ONE_PROCESS, tmp_path / "said") as workers:

        def job(work, at=None):
            """Its exit code and requests; the server kills it when it gets the one of this number."""
            before, pid = len(fake.requests), workers.start(n, fake.url, tmp_path / "tiny", tmp_path / work, *files)
            # no driver sends any more while the server is about to carry out one: the kill comes first
            fake.before = lambda *request: os.kill(pid, signal.SIGKILL) if len(fake.requests) - before == at else None
            code = workers.wait()
            fake.before = lambda *request: None
            return code, len(fake.requests) - before

        with open_store(url=fake.url) as store:
            code, least = job("whole")
            assert code == 0, (tmp_path / "said").read_text()
            wanted, card, most = points_of(store, "job"), store.card("job"), 0
            for at in range(least + 1):
                store.delete("job")
                killed, first = job("work", at)
                again, second = job("work")
                assert (killed, again) == (-signal.SIGKILL if at < least else 0, 0), (tmp_path / "said").read_text()
                assert points_of(store, "job") == wanted and store.card("job").digest == card.digest
                assert [one.name for one in fake.client.get_collections().collections] == ["job__v0001"]
                most = max(most, first + second)
            print(f"a job of {least} requests: at most {most} with a kill")
            assert most <= 1.5 * least


@pytest.mark.parametrize("engine", ["pyspark", "daft"])
def test_the_recipes_of_other_engines_make_what_a_load_makes(engine, tmp_path, monkeypatch):
    """As docs/scale.md has them."""
    module = pytest.importorskip(engine, reason=f"{engine} is not installed")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    rows = [row for table in tables(1300) for row in table.to_pylist()]
    model = str(write_tiny_encoder(tmp_path / "tiny", calibration=0.5))
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text().partition("## Other engines")[2]
    spark, daft, driver = page.split("```py\n")[1:]
    with FakeQdrant() as fake, open_store(url=fake.url) as store:
        names = {"pa": pa, "url": fake.url, "Encoder": Encoder, "Recipe": Recipe, "open_store": open_store}
        names |= {name: getattr(batches, name) for name in ("Encode", "Fuse", "Upsert", "combined")}
        names |= {"card_of": card_of, "finished": finished, engine: module}
        if engine == "pyspark":
            from pyspark.sql import SparkSession

            names["spark"] = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
            names["frame"] = names["spark"].createDataFrame(pa.Table.from_pylist(rows)).coalesce(1)
        else:
            names["frame"] = module.from_arrow(pa.Table.from_pylist(rows))
        for block in (spark if engine == "pyspark" else daft, driver):
            code = (
                block.partition("```")[0].replace("/shared/my-model", model).replace("/shared/work", f"{tmp_path}/work")
            )
            exec(code, names)
        records = [{"id": docid, "generated_queries": asked} for docid, asked in queries(1300).items()]
        load(passages(1300), "whole", encoder=Encoder(model), queries=records, store=store)
        assert (store.card("wiki").digest, store.card("wiki").count) == (store.card("whole").digest, 1300)
        assert points_of(store, "wiki") == points_of(store, "whole")
