"""RAG with LlamaIndex over the sample corpus: question in any language, English passages, the prompt for your model.

pip install 'xqg-vdb[llama-index]'; then give the query engine your LLM where the comment says so.
"""

import sys

from llama_index.core import get_response_synthesizer
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine

from xqg_vdb import Encoder, Retriever, load
from xqg_vdb.integrations.llama_index import XqgRetriever
from xqg_vdb.texts.corpus import sample_corpus


def main() -> None:
    question = sys.argv[1] if len(sys.argv) > 1 else "Ni ziwa gani liko nyuma ya bwawa la Aswan?"
    sample, encoder = sample_corpus(), Encoder("starter")
    with load(sample.corpus, "sample", encoder=encoder, queries=sample.queries).collection as collection:
        retriever = XqgRetriever(Retriever(encoder, collection), similarity_top_k=3, passage_langs=["en"])
        llm = MockLLM()  # says its prompt; put OpenAI(model=…) or any other LLM here
        engine = RetrieverQueryEngine(retriever, response_synthesizer=get_response_synthesizer(llm=llm))
        answer = engine.query(question)
        print(answer)
        print("from:", ", ".join(node.metadata["title"] for node in answer.source_nodes))


if __name__ == "__main__":
    main()
