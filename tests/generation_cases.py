"""Tiny generators for the generation tests: a fake without any model, and randomly initialised checkpoints."""

import hashlib
from pathlib import Path

import orjson
from tokenizers import Tokenizer, decoders, models

from xqg_vdb.types import GeneratedQueries

LETTERS = ["<pad>", "</s>", "<unk>", "<s>", "\n"] + [chr(i) for i in range(32, 127)]


class FakeGenerator:
    """Deterministic queries; `bad` maps (id, lang, index) to what the first attempt writes."""

    tries_again, failure, examples, at_once = False, "", ("How long is the Nile?",), 1

    def __init__(self, bad=None, size=3, seed=1):
        self.bad, self.size, self.seed, self.calls = bad or {}, size, seed, []

    def batch_size(self, langs, n):
        return self.size

    def generate_batch(self, batch, *, query_langs, n, attempt=0):
        self.calls.append(([p.id for p in batch], tuple(query_langs), attempt))
        return [
            GeneratedQueries(
                p.id, {lang: tuple(self._query(p.id, lang, i, attempt) for i in range(n)) for lang in query_langs}
            )
            for p in batch
        ]

    def _query(self, id, lang, i, attempt):
        if attempt == 0 and (id, lang, i) in self.bad:
            return self.bad[id, lang, i]
        word = hashlib.sha256(f"{self.seed} {id} {lang} {i} {attempt}".encode()).hexdigest()[:6]
        return f"What is {word}?"

    @property
    def settings(self):
        return {"kind": "fake", "seed": self.seed}

    def counters(self):
        return {"batches": len(self.calls)}


def write_corpus(path: Path, count: int) -> Path:
    records = [
        {"id": f"p{i}", "title": f"t{i}", "text": f"Passage {i} is about {'xyzABC'[i % 6] * (5 + i * 3 % 17)}"}
        for i in range(count)
    ]
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    return path


def tiny_checkpoint(kind: str, path: Path) -> Path:
    """A checkpoint of a small random model whose greedy texts do not end in a loop at once (weights scaled up).

    Few layers: torch's exporter takes seconds for each.
    """
    import torch
    import transformers as tf

    torch.manual_seed(0)
    path.mkdir(parents=True)
    ids = {"pad_token_id": 0, "eos_token_id": 1}
    shape = {
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    if kind == "mt5":
        model = tf.MT5ForConditionalGeneration(
            tf.MT5Config(
                vocab_size=100, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_decoder_layers=2, num_heads=4,
                decoder_start_token_id=0, tie_word_embeddings=False, **ids,
            )
        )  # fmt: skip
        model.lm_head.weight = torch.nn.Parameter(torch.randn(100, 64))  # transformers 5 ties it to the embeddings
    elif kind == "gemma":  # prompts are longer than the window, so that the sliding layers matter
        model = tf.Gemma3ForCausalLM(
            tf.Gemma3TextConfig(
                **shape,
                num_hidden_layers=2,
                layer_types=["sliding_attention", "full_attention"],
                head_dim=16,
                sliding_window=12,
                query_pre_attn_scalar=16,
                bos_token_id=3,
                **ids,
            )
        )
    else:
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**shape, num_hidden_layers=1, bos_token_id=3, **ids))
    for name, weights in model.named_parameters():
        if weights.dim() > 1:
            weights.data.mul_({"lm_head.weight": 0.5}.get(name, 1.5) if kind == "mt5" else 4.0)
    model.save_pretrained(path)
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(LETTERS)}, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(LETTERS[:4])
    tokenizer.save(str(path / "tokenizer.json"))
    return path
