"""`generate --reuse`: the output is byte for byte that of a full run, and only what is new is generated."""

import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import processes
import pytest
from generation_cases import FakeGenerator
from hypothesis import given, settings
from hypothesis import strategies as st

from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.generate.filters import QueryFilter, filter_file
from xqg_vdb.generate.output import merge_shards, provenance_path
from xqg_vdb.generate.run import Job, generate_file
from xqg_vdb.types import GeneratedQueries

FILTER = QueryFilter(skip=("wrong language",), examples=FakeGenerator.examples)


class Writer(FakeGenerator):
    """A generator whose queries depend on all that they may depend on; some are bad, some of these twice."""

    def __init__(self, size=3, seed=1, fewer=False, die_after=None):
        super().__init__(size=size, seed=seed)
        self.fewer, self.die_after = fewer, die_after

    def generate_batch(self, batch, *, query_langs, n, attempt=0):
        if self.die_after == len(self.calls):
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls.append(([p.id for p in batch], tuple(query_langs), attempt))
        return [
            GeneratedQueries(p.id, {lang: self._several(p, lang, n, attempt) for lang in query_langs}) for p in batch
        ]

    def _several(self, passage, lang, n, attempt):
        found = tuple(self._text(passage, lang, i, attempt) for i in range(n))
        return tuple(filter(None, found)) if self.fewer else found  # as an endpoint leaves out empty answers

    def _text(self, passage, lang, i, attempt):
        blob = orjson.dumps([self.seed, passage.id, passage.title, passage.text, lang, i, attempt])
        number = hashlib.sha256(blob).digest()
        return ["", "no mark", "What is blank?"][number[0] % 3] if number[1] < 90 else f"What is {number.hex()[:6]}?"

    def made(self):
        """(passage, language) pairs that were asked for at a first try."""
        return [(one, lang) for ids, langs, attempt in self.calls if attempt == 0 for one in ids for lang in langs]


def write(path, corpus):
    path.write_bytes(b"".join(orjson.dumps({"id": id, "title": t, "text": x}) + b"\n" for id, (t, x) in corpus.items()))
    return path


def run(corpus, out, *, langs=("de", "sw"), n=2, shards=1, filtered=False, reuse=None, generator=None, **of_writer):
    """(generator, provenance) of a run in `shards` parts."""
    generator = generator or Writer(**of_writer)
    for number in range(1, shards + 1):
        job = Job(langs, n, f"{number}/{shards}", FILTER if filtered else None)
        generate_file(corpus, out, generator=generator, job=job, reuse=reuse)
    if shards > 1:
        merge_shards(out)
    return generator, orjson.loads(provenance_path(out).read_bytes())


# few texts, so that much stays; two titles and texts that are the same once they are joined
contents = st.sampled_from([("", "one"), ("", "two"), ("A B", "C"), ("A", "B C")])
corpora = st.dictionaries(st.sampled_from([f"p{i}" for i in range(9)]), contents, min_size=1)


@st.composite
def months(draw):
    """A corpus, and what has become of it: changed, added, removed and reordered passages."""
    old, new = draw(corpora), draw(corpora)
    new.update({id: old[id] for id in draw(st.sets(st.sampled_from(sorted(old))))})
    return old, {id: new[id] for id in draw(st.permutations(sorted(new)))}


@settings(max_examples=60, deadline=None)
@given(
    months(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans()
)
def test_the_bytes_are_those_of_a_full_run(
    tmp_path_factory, corpora, old_size, size, old_shards, shards, filtered, fewer
):
    place = tmp_path_factory.mktemp("reuse")
    old, new = corpora
    was, now = write(place / "old.jsonl", old), write(place / "new.jsonl", new)
    run(was, place / "was.q", size=old_size, shards=old_shards, filtered=filtered, fewer=fewer)
    _, full = run(now, place / "full.q", size=size, filtered=filtered, fewer=fewer)
    made, record = run(
        now, place / "now.q", size=size, shards=shards, filtered=filtered, fewer=fewer, reuse=place / "was.q"
    )
    assert (place / "now.q").read_bytes() == (place / "full.q").read_bytes()
    kept = {id for id in new if old.get(id) == new[id]}
    assert sorted(made.made()) == sorted((id, lang) for id in new if id not in kept for lang in ("de", "sw"))
    assert record["reused"] == {"was.q": len(kept)} and full["reused"] == {}
    assert (record["passages"], record["queries"]) == (full["passages"], full["queries"])
    parts = [sum(record["rejected"].values()), sum(full["rejected"].values())]
    assert parts[0] <= parts[1]


@settings(max_examples=25, deadline=None)
@given(months(), st.permutations(["de", "sw", "ha", "zu"]), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_more_fewer_and_reordered_languages(tmp_path_factory, corpora, langs, before, after, size):
    place = tmp_path_factory.mktemp("reuse")
    old, new = corpora
    was, now = write(place / "old.jsonl", old), write(place / "new.jsonl", new)
    langs_before, langs_after = langs[:before], [*langs[after:], langs[0]]  # the first one is in both
    run(was, place / "was.q", langs=langs_before)
    run(now, place / "full.q", langs=langs_after, size=size)
    made, _ = run(now, place / "now.q", langs=langs_after, size=size, reuse=place / "was.q")
    assert (place / "now.q").read_bytes() == (place / "full.q").read_bytes()
    kept = {(id, lang) for id in new if old.get(id) == new[id] for lang in langs_before}
    assert sorted(made.made()) == sorted((id, lang) for id in new for lang in langs_after if (id, lang) not in kept)


def passages(count, **changed):
    return {f"p{i}": ("t", changed.get(f"p{i}", f"text {i}")) for i in range(count)}


def test_batches_are_full_although_most_is_known_and_progress_counts_the_rest(tmp_path):
    run(write(tmp_path / "a.jsonl", passages(100)), tmp_path / "a.q")
    now = write(tmp_path / "b.jsonl", passages(100, p7="x", p50="x", p51="x", p80="x"))
    seen, generator = [], Writer()
    summary = generate_file(
        now,
        tmp_path / "b.q",
        generator=generator,
        job=Job(("de", "sw"), 2),
        reuse=tmp_path / "a.q",
        progress=lambda *said: seen.append(said),
    )
    assert [ids for ids, _, _ in generator.calls] == [["p7", "p50", "p51"], ["p80"]]
    assert seen == [("passages", done, 4) for done in (0, 3, 4)]
    assert (summary.passages, summary.queries, dict(summary.reused)) == (100, 400, {"a.q": 96})


def test_an_output_that_was_made_with_reuse_can_be_reused(tmp_path):
    run(write(tmp_path / "a.jsonl", passages(9)), tmp_path / "a.q")
    run(write(tmp_path / "b.jsonl", passages(9, p1="x")), tmp_path / "b.q", reuse=tmp_path / "a.q")
    now = write(tmp_path / "c.jsonl", passages(10, p1="x"))
    made, record = run(now, tmp_path / "c.jsonl.gz", reuse=tmp_path / "b.q")
    assert made.made() == [("p9", "de"), ("p9", "sw")] and record["reused"] == {"b.q": 9}
    made, _ = run(now, tmp_path / "d.q", reuse=tmp_path / "c.jsonl.gz")
    assert made.made() == []


ONE_RUN = """
import sys
from pathlib import Path
from test_generation_reuse import Writer, run
place, die_after = Path(sys.argv[1]), int(sys.argv[2])
run(place / "b.jsonl", place / "b.q", filtered=True, reuse=place / "a.q", die_after=die_after)
"""


def test_killed_at_every_batch_the_same_command_ends_with_the_same_bytes(tmp_path):
    """Every run is killed with SIGKILL at its second or third call of the generator, until one gets to the end."""
    old = passages(60)
    new = passages(70, **{f"p{i}": "changed" for i in range(0, 60, 5)})
    order = random.Random(3).sample(sorted(new), len(new))
    run(write(tmp_path / "a.jsonl", old), tmp_path / "a.q", filtered=True)
    now = write(tmp_path / "b.jsonl", {id: new[id] for id in order})
    _, full = run(now, tmp_path / "full.q", filtered=True)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    codes = []
    while not codes or codes[-1] != 0:
        assert len(codes) < 30
        command = [sys.executable, "-c", ONE_RUN, str(tmp_path), str(2 + len(codes) % 2)]
        process = processes.start(command, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True)
        _, said = process.communicate()
        codes.append(process.returncode)
        assert codes[-1] in (0, -signal.SIGKILL), said
    assert codes.count(-signal.SIGKILL) >= 5
    assert (tmp_path / "b.q").read_bytes() == (tmp_path / "full.q").read_bytes()
    record = orjson.loads(provenance_path(tmp_path / "b.q").read_bytes())
    assert record["reused"] == {"a.q": 48} and record["queries"] == full["queries"]
    assert not list(tmp_path.glob("*.shard-*"))


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"seed": 2}, r"\(generator\.seed was 1, is 2\)"),
        ({"n": 3}, r"\(n was 2, is 3\)"),
        ({"filtered": False}, r"\(filter\.max_characters was 200, is None; .*\)"),
        ({"langs": ("de", "sw", "ha")}, r"\(langs was \['de', 'sw'\], is \['de', 'ha', 'sw'\]\)"),
    ],
)
def test_other_settings_are_named(tmp_path, wanted, named):
    corpus = write(tmp_path / "a.jsonl", passages(3))
    run(corpus, tmp_path / "a.q", filtered=True)
    with pytest.raises(MismatchError, match=f"a.q was made with other settings {named}: use the same ones, or leave"):
        run(corpus, tmp_path / "b.q", reuse=tmp_path / "a.q", **{"filtered": True, **wanted})
    assert not list(tmp_path.glob("b.q*"))


def test_where_a_checkpoint_lay_does_not_matter(tmp_path):
    class Somewhere(Writer):
        place = "one"

        @property
        def settings(self):
            return {**super().settings, "source": self.place}

    corpus, second = write(tmp_path / "a.jsonl", passages(3)), Somewhere()
    run(corpus, tmp_path / "a.q", generator=Somewhere())
    second.place = "two"
    run(corpus, tmp_path / "b.q", generator=second, reuse=tmp_path / "a.q")
    assert second.calls == []


def test_a_number_of_beams_that_an_old_file_records_does_not_matter(tmp_path):
    class Sampling(Writer):
        def __init__(self, **decoding):
            super().__init__()
            self.decoding = decoding

        @property
        def settings(self):
            return {**super().settings, "decoding": self.decoding}

    corpus, second = write(tmp_path / "a.jsonl", passages(3)), Sampling(top_k=10)
    run(corpus, tmp_path / "a.q", generator=Sampling(top_k=10, beams=4))
    run(corpus, tmp_path / "b.q", generator=second, reuse=tmp_path / "a.q")
    assert not second.calls
    with pytest.raises(MismatchError, match=r"generator.decoding.top_k was 10, is 5\)"):
        run(corpus, tmp_path / "c.q", generator=Sampling(top_k=5), reuse=tmp_path / "a.q")


def test_outputs_that_cannot_be_reused(tmp_path):
    corpus = write(tmp_path / "a.jsonl", passages(3))
    old, new = tmp_path / "a.q", tmp_path / "b.q"
    with pytest.raises(DataError, match=r"There is no file .*a\.q"):
        run(corpus, new, reuse=old)
    run(corpus, old)
    with pytest.raises(DataError, match=r"a\.q cannot be reused and written at once: give another OUT\."):
        run(corpus, old, reuse=old)
    with pytest.raises(MismatchError, match=r"a\.q has queries in de, sw only: leave --reuse out\."):
        run(corpus, new, langs=("ha",), reuse=old)
    filter_file(old, tmp_path / "good.q", query_filter=FILTER)
    with pytest.raises(
        MismatchError, match="does not say which texts its queries are about: give --reuse the file that"
    ):
        run(corpus, new, filtered=True, reuse=tmp_path / "good.q")
    beside = provenance_path(old)
    record = orjson.loads(beside.read_bytes())
    beside.write_bytes(orjson.dumps({**record, "schema": 1}))
    with pytest.raises(
        MismatchError, match=r"another version of this program \(schema 1, this is 2\), and does not say"
    ):
        run(corpus, new, reuse=old)
    for damage in (b"{", b"[]", b'{"schema": 2}'):
        beside.write_bytes(damage)
        with pytest.raises(DataError, match=r"without its a\.q\.provenance\.json, which says how it was made: put"):
            run(corpus, new, reuse=old)
    beside.unlink()
    with pytest.raises(DataError, match=r"without its a\.q\.provenance\.json"):
        run(corpus, new, reuse=old)
    assert not list(tmp_path.glob("b.q*"))


@pytest.mark.parametrize(
    "changed", [passages(3, p1="x"), passages(4), passages(2), dict(reversed(passages(3).items()))]
)
def test_a_finished_output_is_not_taken_for_that_of_a_changed_corpus(tmp_path, changed):
    corpus, out = write(tmp_path / "a.jsonl", passages(3)), tmp_path / "a.q"
    run(corpus, out)
    before = out.read_bytes()
    write(corpus, changed)
    with pytest.raises(
        MismatchError, match=r"made from another corpus: give another OUT, with --reuse .*a\.q to write"
    ):
        run(corpus, out)
    assert out.read_bytes() == before


def test_a_finished_output_of_schema_1_is_finished(tmp_path):
    corpus, out = write(tmp_path / "a.jsonl", passages(3)), tmp_path / "a.q"
    run(corpus, out)
    lines = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    out.write_bytes(b"".join(orjson.dumps({k: line[k] for k in ("id", "generated_queries")}) + b"\n" for line in lines))
    record = orjson.loads(provenance_path(out).read_bytes())
    provenance_path(out).write_bytes(orjson.dumps({**record, "schema": 1}))
    made, _ = run(corpus, out)
    assert made.calls == []
