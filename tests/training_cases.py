"""Twenty pairs and tiny checkpoints for the training tests."""

from pathlib import Path

import orjson

from xqg_vdb.train.pairs import TrainingPair
from xqg_vdb.types import Passage

TOPICS = ["Nile", "salt", "tea", "moon", "gold", "rice", "iron", "milk", "bees", "wind"]


def twenty_pairs():
    """Two questions, in two languages, about each of ten passages."""
    pairs = []
    for i, topic in enumerate(TOPICS):
        passage = Passage(f"p{i}", f"{topic} is number {i} of ten.", topic, "en")
        pairs.append(TrainingPair(f"{i}-sw", f"Je {topic} ni nini?", "sw", passage, translation=f"What is {topic}?"))
        pairs.append(TrainingPair(f"{i}-de", f"Was ist {topic}?", "de", passage, translation=f"What is {topic}?"))
    return pairs


def write_pairs(path: Path, pairs=None) -> Path:
    lines = [
        {
            "query_id": pair.id, "query": pair.query, "lang": pair.lang, "translation": pair.translation,
            "positive": {"id": pair.positive.id, "title": pair.positive.title, "text": pair.positive.text},
        }
        for pair in pairs or twenty_pairs()
    ]  # fmt: skip
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return path


def tiny_bert(folder: Path, *, dropout=0.0) -> Path:
    """A random BERT whose tokenizer knows single characters."""
    import torch
    import transformers

    folder.mkdir(parents=True)
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in (*range(33, 127), *range(0x400, 0x450), *range(0x620, 0x650))]
    (folder / "vocab.txt").write_text("\n".join([*marks, *letters, *["##" + letter for letter in letters]]), "utf-8")
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=5 + 2 * len(letters), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=128, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder, safe_serialization=True)
    return folder
