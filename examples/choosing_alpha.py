"""How strongly to fold generated queries in: choose on questions with known passages, then load with that.

    python examples/choosing_alpha.py

The shipped sample's questions name their passages, from which `qrels.txt` is written; bring your own for your corpus.
"""

import json
from pathlib import Path

from xqg_vdb import Encoder, load
from xqg_vdb.evaluate.metrics import Metric
from xqg_vdb.texts.corpus import sample_corpus
from xqg_vdb.tune.tune import choose, labelled

sample, qrels = sample_corpus(), Path("qrels.txt")
asked = map(json.loads, sample.questions.read_text(encoding="utf-8").splitlines())
qrels.write_text("".join(f"{question['id']} 0 {question['passage']} 1\n" for question in asked))
with Encoder("starter") as encoder:
    data = labelled(
        sample.corpus, [sample.queries], questions=sample.questions, qrels=qrels, encoder=encoder, folder=Path("tuning")
    )
    found = choose(data, metric=Metric("MRR", 10))
    for alpha, value in found.alphas:
        print(f"α = {alpha:4.2f}  MRR@10 {value:.3f}")
    print("chosen:", found.chosen.recipe, "λ =", found.chosen.strength)
    recipe = found.chosen.recipe
    with load(sample.corpus, "sample", encoder=encoder, queries=sample.queries, recipe=recipe).collection as collection:
        print(collection.count(), "passages in", collection)
