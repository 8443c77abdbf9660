"""RAG with LangChain over the sample corpus: question in any language, English passages, the prompt for your model.

pip install 'xqg-vdb[langchain]'; then put a chat model behind the prompt where the comment says so.
"""

import sys

from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from xqg_vdb import Encoder, Retriever, load
from xqg_vdb.integrations.langchain import XqgRetriever
from xqg_vdb.texts.corpus import sample_corpus

PROMPT = ChatPromptTemplate.from_template(
    "Answer in the language of the question, from these passages only.\n\n{passages}\n\nQuestion: {question}"
)


def as_text(documents: list[Document]) -> str:
    return "\n".join(f"[{one.metadata['title']}] {one.page_content}" for one in documents)


def main() -> None:
    question = sys.argv[1] if len(sys.argv) > 1 else "Ni ziwa gani liko nyuma ya bwawa la Aswan?"
    sample, encoder = sample_corpus(), Encoder("starter")
    with load(sample.corpus, "sample", encoder=encoder, queries=sample.queries).collection as collection:
        retriever = XqgRetriever(retriever=Retriever(encoder, collection), k=3, passage_langs=["en"])
        chain = {"passages": retriever | as_text, "question": RunnablePassthrough()} | PROMPT
        # chain = chain | ChatOpenAI(model=…) | StrOutputParser()
        print(chain.invoke(question).to_string())


if __name__ == "__main__":
    main()
