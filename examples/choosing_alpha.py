"""How strongly to fold generated queries in: choose on held-out ones, then load with what was chosen.

    python examples/choosing_alpha.py

The shipped sample, without labels: one query per passage is held out and asked of the rest. With your own questions and
relevance judgements use `labelled` instead of `label_free`; docs/tuning.md says how far to trust each.
"""

from pathlib import Path

from xqg_vdb import Encoder, load
from xqg_vdb.metrics import Metric
from xqg_vdb.questions import sample_corpus
from xqg_vdb.tuning.material import label_free
from xqg_vdb.tuning.search import choose

sample = sample_corpus()
with Encoder("starter") as encoder:
    material = label_free(sample.corpus, [sample.queries], encoder=encoder, folder=Path("tuning"))
    found = choose(material, metric=Metric("MRR", 10))
    for alpha, value in found.alphas:
        print(f"α = {alpha:4.2f}  MRR@10 {value:.3f}")
    print("chosen:", found.chosen.recipe, "λ =", found.chosen.strength)
    recipe = found.chosen.recipe
    with load(sample.corpus, "sample", encoder=encoder, queries=sample.queries, recipe=recipe) as collection:
        print(collection.count(), "passages in", collection)
