"""Generative query expansion on the first questions of a task: recall by strategy, kind, order and combination.

    python benchmarks/expansion.py --work /tmp/upr-bench --model GENERATOR --task xquad --langs de ar zh --questions 20

Retrieval is the calibrated starter encoder over English passages. `--model` may be an endpoint's URL. Expansions are
kept below --work, so another run asks the model nothing; seconds are those of writing. All ways to combine use the same
expansion. The length line belongs to the claim that a question's length decides which prompt works.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from small_task import by_id, collection_of, first_questions, measured, options, print_table, say  # noqa: E402

from xqg_vdb.encoding import Encoder  # noqa: E402
from xqg_vdb.expansion import Expander, ExpansionCache, Plan  # noqa: E402
from xqg_vdb.generation.completion import open_writer  # noqa: E402
from xqg_vdb.models import ensure_encoder  # noqa: E402
from xqg_vdb.retrieval import Retriever  # noqa: E402

PLANS = {
    "zero-shot": Plan("zero-shot", lang="en"),
    "few-shot": Plan("few-shot", lang="en"),
    "chain-of-thought": Plan("chain-of-thought", lang="en"),
    "rephrase-and-respond": Plan("rephrase-and-respond", lang="en"),
    "few-shot keywords": Plan("few-shot", "keywords", lang="en"),
    "translation": Plan("few-shot", "translation", lang="en"),
    "translate-expand": Plan("few-shot", order="translate-expand", lang="en"),
    "expand-translate": Plan("few-shot", order="expand-translate", lang="en"),
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--endpoint-model", default="default")
    given = parser.parse_args()
    task = first_questions(given)
    encoder = Encoder(ensure_encoder("starter", report=say), threads=given.threads)
    collection, cache = collection_of(task, encoder, given.work), ExpansionCache(given.work / "expansions")
    writer = open_writer(
        given.model, max_tokens=given.max_tokens, endpoint_model=given.endpoint_model, threads=given.threads
    )
    rows, costs, samples = {}, {}, {}

    def add(name: str, expander: Expander | None) -> None:
        answers = Retriever(encoder, collection, expander=expander).run(task.queries, k=10, exact=True)
        rows[name] = measured(task, by_id(task.queries, [answer.hits for answer in answers]))

    add("plain", None)
    for name in given.plans:
        plan = replace(PLANS[name], max_tokens=given.max_tokens)
        say(f"writing: {name}")
        first = Expander(writer, plan=plan, cache=cache)
        expansions = first.expansions(task.queries)
        costs[name] = first.counters()
        samples[name] = [(q.text, e.text) for q, e in zip(task.queries, expansions, strict=True)][:3]
        for combine in ("concat", "mean", "only"):
            add(f"{name}, {combine}", Expander(writer, plan=replace(plan, combine=combine), cache=cache))
    print_table(rows, given.langs)
    print(f"\n{len(task.queries)} questions, {given.threads} threads; words a question: ", end="")
    print(round(sum(len(query.text.split()) for query in task.queries) / len(task.queries), 1))
    for name, counts in costs.items():
        print(f"{name}: {counts}")
    if given.json:
        report = {"rows": rows, "costs": costs, "samples": samples}
        given.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
