"""The MTEB adapter on tasks made in memory: the subset's language reaches calibration, and sides their convention."""

import numpy as np
import pytest
from tiny_model import write_tiny_encoder

from xqg_vdb.models.encoder import Encoder

mteb = pytest.importorskip("mteb", reason="needs MTEB: pip install 'xqg-vdb[mteb]'")

ENGLISH = ["Where does the longest river of Africa begin?", "Which drink do people make of dried leaves?"]
QUESTIONS = {
    "swh-Latn": [
        "Mto mrefu kuliko yote barani Afrika unaanzia wapi?",
        "Majani makavu hutumika kwa kinywaji gani?",
    ],
    "deu-Latn": ["Wo beginnt der längste Fluss Afrikas?", "Welches Getränk macht man aus getrockneten Blättern?"],
}
PASSAGES = ["The Nile is a long river.", "Tea is a drink."]


def metadata(kind, langs):
    return mteb.TaskMetadata(
        name=f"Made{kind}", dataset={"path": "none/none", "revision": "1"}, description="", type=kind, category="t2t",
        modalities=["text"], eval_splits=["test"], eval_langs=langs, bibtex_citation="", reference=None, date=None,
        main_score="f1" if kind == "BitextMining" else "ndcg_at_10", domains=None, task_subtypes=None, license=None,
        annotations_creators=None, dialect=None, sample_creation=None,
    )  # fmt: skip


def retrieval():
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    class Made(AbsTaskRetrieval):
        metadata = metadata("Retrieval", {"sw-en": ["swh-Latn", "eng-Latn"], "deu": ["deu-Latn"]})

        def load_data(self, *_, **__):
            pool = Dataset.from_list([{"id": f"d{i}", "title": "", "text": text} for i, text in enumerate(PASSAGES)])
            self.dataset = {
                subset: {"test": {
                    "corpus": pool,
                    "queries": Dataset.from_list([{"id": f"q{i}", "text": t} for i, t in enumerate(QUESTIONS[lang])]),
                    "relevant_docs": {f"q{i}": {f"d{i}": 1} for i in range(2)}, "top_ranked": None,
                }} for subset, lang in (("sw-en", "swh-Latn"), ("deu", "deu-Latn"))
            }  # fmt: skip
            self.data_loaded = True

    return Made()


def bitext():
    from datasets import Dataset
    from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining

    class Made(AbsTaskBitextMining):
        metadata = metadata("BitextMining", {"deu-eng": ["deu-Latn", "eng-Latn"]})

        def load_data(self, *_, **__):
            rows = {"sentence1": QUESTIONS["deu-Latn"], "sentence2": ENGLISH}
            self.dataset = {"deu-eng": {"test": Dataset.from_dict(rows)}}
            self.data_loaded = True

    return Made()


class Watched:
    """A tiny encoder that notes how it was asked."""

    def __init__(self, encoder):
        self.encoder, self.asked = encoder, []
        self.facts = encoder.facts

    def encode_queries(self, texts, *, question_langs, calibrate):
        self.asked.append(("queries", question_langs, calibrate))
        return self.encoder.encode_queries(texts, question_langs=question_langs, calibrate=calibrate)

    def encode_passages(self, texts):
        self.asked.append(("passages", None, None))
        return self.encoder.encode_passages(texts)


@pytest.mark.parametrize("calibrate", [True, False])
def test_every_subset_is_calibrated_for_its_language(tmp_path, calibrate):
    from xqg_vdb.integrations.mteb import mteb_model

    with Encoder(write_tiny_encoder(tmp_path / "model")) as encoder:
        watched = Watched(encoder)
        model = mteb_model(watched, calibrate=calibrate)
        results = mteb.evaluate(model, [retrieval(), bitext()], cache=None)
        scores = {result.task_name: result.scores["test"] for result in results.task_results}
        assert {row["hf_subset"] for row in scores["MadeRetrieval"]} == {"sw-en", "deu"}
        asked = [langs for side, langs, calibrated in watched.asked if side == "queries" and calibrated is calibrate]
        assert sorted(map(tuple, asked)) == [("de", "de"), ("de", "de"), ("en", "en"), ("sw", "sw")]
        assert sum(side == "passages" for side, *_ in watched.asked) == 2
        way = "calibrated" if calibrate else "plain"
        assert model.mteb_model_meta.name.endswith(f"-{way}"), "both ways stand beside each other in the results"
        ours = encoder.encode_queries(QUESTIONS["deu-Latn"], question_langs=["de"] * 2, calibrate=calibrate)
        theirs = encoder.encode_passages(PASSAGES)
        right = np.argsort(-(ours @ theirs.T), axis=1)[:, 0] == np.arange(2)
        found = next(row for row in scores["MadeRetrieval"] if row["hf_subset"] == "deu")
        assert found["hit_rate_at_1"] == pytest.approx(right.mean())


def test_a_subset_whose_name_says_no_language_leaves_it_to_detection(tmp_path):
    from xqg_vdb.integrations.mteb import _language

    assert _language(["Wo ist der Nil?"], ["default"]) is None
    assert _language(["Wo ist der Nil?"], ["deu_Latn"]) == "de"
    assert _language(["12", "Was ist das?", "Where is it?", "Was ist Tee?"], ["eng-Latn", "deu-Latn"]) == "de"
