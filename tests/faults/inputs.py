"""Mutated lines for every reader: no raw failure, and accepted, refused, blank and repeated records make those read."""

import json
import random
import time

from mutants import mutant
from tally import Tally

from xqg_vdb.errors import XqgError
from xqg_vdb.texts.corpus import read_corpus, read_questions
from xqg_vdb.texts.queries import QueryFile
from xqg_vdb.texts.records import Rejects

LINES, MANY = 2_000, 1 << 40
PASSAGE = {"id": "a", "text": "The Nile is long.", "title": "Nile", "lang": "en", "meta": {"a": [1, {"b": None}]}}
QUERIES = {"docid": "a", "text": "Mto Nile", "generated_queries": {"sw": ["Nini?"], "yo": ["Kí?"]}}
QUESTION = {"id": "q1", "question": "Mto Nile una urefu gani?", "lang": "sw"}


def _passages(path, rejects):
    return sum(1 for _ in read_corpus(path, rejects=rejects, detect=False))


def _queries(path, rejects):
    with QueryFile([path], rejects=rejects) as queries:
        queries.get("1")


def _questions(path, rejects):
    read_questions(path, rejects=rejects)


READERS = {
    **{f"passages.{kind}": (_passages, PASSAGE) for kind in ("jsonl", "json", "tsv", "csv")},
    "queries.jsonl": (_queries, QUERIES),
    **{f"questions{kind}": (_questions, QUESTION) for kind in (".jsonl", ".tsv", ".csv", "")},
}


def seeds(name, record):
    """A good line, and for tables the header that comes first."""
    if name.endswith((".tsv", ".csv")):
        mark = "\t" if name.endswith(".tsv") else ","
        plain = {key: value for key, value in record.items() if isinstance(value, str)}
        return mark.join(plain).encode(), mark.join(plain.values()).encode()
    return b"", json.dumps(record).encode()


def fuzzed(name):
    """The attack on one reader: each round is a file of 2,000 lines."""
    read, record = READERS[name]

    def attack(rng, folder, rounds):
        folder.mkdir(parents=True)
        tally, (head, line) = Tally(), seeds(name, record)
        for _ in range(rounds):
            seed = rng.getrandbits(32)
            lines = random.Random(seed)
            path, rejects = folder / name, Rejects(MANY)
            path.write_bytes(b"\n".join([head, *(mutant(lines, line, number) for number in range(LINES))]))
            began = time.process_time()
            tally.tried += LINES
            try:
                read(path, rejects)
            except XqgError:
                tally.note("refused as a whole")
            except Exception as error:
                tally.bad.append(f"{name}, seed {seed}: {error!r}")
                continue
            else:
                total = rejects.accepted + rejects.duplicates + rejects.blank + rejects.rejected
                if total != rejects.read:
                    tally.bad.append(f"{name}, seed {seed}: {total} of {rejects.read} accounted for")
            tally.hit += rejects.rejected
            if (took := time.process_time() - began) > 10:
                tally.bad.append(f"{name}, seed {seed}: {took:.1f} s of CPU for {LINES} lines")
        return tally

    return attack


ATTACKS = {f"mutated lines of {name}": (4, fuzzed(name)) for name in READERS}
