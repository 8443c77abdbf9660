"""What a generator behind an endpoint reads and writes for 10,000 passages, in tokens: `--help` has the options.

One request is one query: the prompt and the passage are read each time. Tokens are those of the starter encoder's
vocabulary (XLM-R); a model's own differ by some tenths. Queries: `--queries FILE` of an earlier run, else the sample's.
"""

import argparse
import json
from itertools import islice
from pathlib import Path
from statistics import mean

from tokenizers import Tokenizer

from xqg_vdb import Encoder
from xqg_vdb.generate.prompts import chat
from xqg_vdb.texts.corpus import read_corpus, sample_corpus

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("corpus", type=Path, nargs="?", default=sample_corpus().corpus)
parser.add_argument("--queries", type=Path, default=sample_corpus().queries)
parser.add_argument("--passages", type=int, default=10_000)
parser.add_argument("--languages", type=int, default=2)
parser.add_argument("-n", type=int, default=3, help="queries a language")
asked = parser.parse_args()

with Encoder("starter") as encoder:
    tokens = Tokenizer.from_file(str(encoder.folder.path / "tokenizer.json"))
prompt = chat("", "")


def length(text: str) -> int:
    return len(tokens.encode(text, add_special_tokens=False).ids)


passages = list(islice(read_corpus(asked.corpus), 2000))
read = mean(length(prompt.prefix + "".join(prompt.passage_parts(p)) + prompt.ending("sw")) for p in passages)
with asked.queries.open(encoding="utf-8") as lines:
    records = [json.loads(line)["generated_queries"] for line in islice(lines, 2000)]
written = mean(length(query) for record in records for queries in record.values() for query in queries)
requests = asked.passages * asked.languages * asked.n
print(f"{requests:,} requests of {read:.0f} tokens read and {written:.0f} written:")
print(f"{requests * read / 1e6:.1f} million tokens read, {requests * written / 1e6:.2f} million written")
