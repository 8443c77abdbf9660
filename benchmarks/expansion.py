"""Generative query expansion on a sample of a task's questions: recall by method.

    python benchmarks/expansion.py --work /tmp/upr-bench --model GENERATOR --task xquad --langs de ar zh --questions 20

Retrieval is the calibrated starter encoder over English passages. `--model` may be an endpoint's URL. Expansions are
kept below --work, so another run asks the model nothing; seconds are those of this run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from xqg_vdb.types import Search

os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from small_task import by_id, collection_of, measured, options, print_table, say, some_questions  # noqa: E402

from xqg_vdb.evaluate.methods import MemoWriter  # noqa: E402
from xqg_vdb.journal import Memo  # noqa: E402
from xqg_vdb.models.encoder import Encoder  # noqa: E402
from xqg_vdb.models.folder import encoder_folder  # noqa: E402
from xqg_vdb.search.expand import PROMPTS, Expander, open_writer  # noqa: E402
from xqg_vdb.search.retriever import Retriever  # noqa: E402

METHODS = ("translation", "pseudo-document")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--endpoint-model", default="default")
    given = parser.parse_args()
    task = some_questions(given)
    encoder = Encoder(encoder_folder("starter", say=say), threads=given.threads)
    collection = collection_of(task, encoder, given.work)
    asked = open_writer(given.model, endpoint_model=given.endpoint_model, threads=given.threads)
    header = {"prompts": PROMPTS, "writer": asked.describe()}
    writer = MemoWriter(asked, memo=Memo(given.work / "expansions.log", header=header, field="text"))
    rows, costs, samples = {}, {}, {}

    def add(name: str, expander: Expander | None) -> None:
        answers = Retriever(encoder, collection, expander=expander).run(task.queries, Search(10, exact=True))
        rows[name] = measured(task, by_id(task.queries, [answer.hits for answer in answers]))

    add("plain", None)
    for name in given.methods:
        say(f"writing: {name}")
        expander = Expander(writer, method=name, lang="en")
        expansions = expander.expansions(task.queries)
        costs[name] = expander.counters()
        samples[name] = [(query.text, text) for query, text in zip(task.queries, expansions, strict=True)][:3]
        add(name, expander)
    print_table(rows, given.langs)
    print(f"\n{len(task.queries)} questions, {given.threads} threads")
    for name, counts in costs.items():
        print(f"{name}: {counts}")
    if given.json:
        report = {"rows": rows, "costs": costs, "samples": samples}
        given.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
