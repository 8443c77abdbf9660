"""RAG with Haystack over the sample corpus: question in any language, English passages, the prompt for your model.

pip install 'xqg-vdb[haystack]'; then connect a chat generator to the prompt builder where the comment says so.
"""

import sys

from haystack import Pipeline
from haystack.components.builders import PromptBuilder

from xqg_vdb import Encoder, load
from xqg_vdb.integrations.haystack import XqgRetriever
from xqg_vdb.store import open_store
from xqg_vdb.texts.corpus import sample_corpus

TEMPLATE = """Answer in the language of the question, from these passages only.
{% for one in documents %}
[{{ one.meta.title }}] {{ one.content }}{% endfor %}

Question: {{ question }}"""
FOLDER = "xqg-data"


def main() -> None:
    question = sys.argv[1] if len(sys.argv) > 1 else "Ni ziwa gani liko nyuma ya bwawa la Aswan?"
    sample = sample_corpus()
    with Encoder("starter") as encoder, open_store(FOLDER) as store:
        load(sample.corpus, "sample", encoder=encoder, queries=sample.queries, store=store)
    pipeline = Pipeline()
    retriever = XqgRetriever("sample", path=FOLDER, top_k=3, passage_langs=["en"])
    pipeline.add_component("retriever", retriever)
    pipeline.add_component("prompt", PromptBuilder(TEMPLATE, required_variables=["documents", "question"]))
    pipeline.connect("retriever.documents", "prompt.documents")
    # pipeline.add_component("model", OpenAIGenerator(model=…)); pipeline.connect("prompt", "model")
    print(pipeline.run({"retriever": {"query": question}, "prompt": {"question": question}})["prompt"]["prompt"])
    retriever.close()


if __name__ == "__main__":
    main()
