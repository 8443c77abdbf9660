"""Your own corpus in ten lines: passages in, a question in another language, the best passages out."""

import json
from pathlib import Path

from xqg_vdb import Encoder, Retriever, load

passages = [
    {"id": "nile", "title": "Nile", "text": "The Nile is about 6,650 kilometres long.", "lang": "en"},
    {"id": "amazon", "title": "Amazon", "text": "The Amazon carries more water than any other river.", "lang": "en"},
    {"id": "rhein", "title": "Rhein", "text": "Der Rhein entspringt in den Schweizer Alpen.", "lang": "de"},
]
Path("my-corpus.jsonl").write_text("\n".join(map(json.dumps, passages)))

encoder = Encoder("starter")
with load("my-corpus.jsonl", "mine", encoder=encoder).collection as collection:
    for hit in Retriever(encoder, collection).search("Mto Nile una urefu gani?", k=2, passage_langs=["en"]):
        print(f"{hit.score:.3f} {hit.title}: {hit.text}")
