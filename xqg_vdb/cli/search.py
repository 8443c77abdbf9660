"""`xqg-vdb search`, `info`, `serve` and `mcp`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xqg_vdb.cli.options import (
    PATH,
    Model,
    Place,
    collection_argument,
    command,
    language_codes,
    methods_options,
    model_options,
    place_options,
    say,
    show,
    takes,
)
from xqg_vdb.errors import DataError, LockedError, ServerError, printable
from xqg_vdb.progress import bars
from xqg_vdb.types import Search, option

if TYPE_CHECKING:
    from xqg_vdb.integrations.serve import Service
    from xqg_vdb.search import Methods
    from xqg_vdb.search.expand import Expander
    from xqg_vdb.search.rerank import Reranker
    from xqg_vdb.search.retriever import Answer
    from xqg_vdb.store.operations import CollectionState
    from xqg_vdb.types import Card


_SNIPPET = 160


@command(
    example="xqg-vdb search demo 'Mto Nile una urefu gani?' -k 3\n"
    "xqg-vdb search wiki 'Mto Nile una urefu gani?' --where source=wiki \\\n    --where 'year>=2020'\n"
    "xqg-vdb search demo 'Wie lang ist der Nil?' -k 3 \\\n    --rerank upr:starter:generator --rerank-depth 20"
)
@collection_argument
@click.argument("text", required=False)
@takes("wanted", "xqg_vdb.types.Search")
@click.option(
    "--where",
    multiple=True,
    metavar="CONDITION",
    help="Only passages whose field says so: source=wiki, year>=2020, tenant!=acme, note= (missing); repeatable.",
)
@click.option("--question-lang", shell_complete=language_codes, help="Language of the question  [default: detected]")
@click.option("--questions", type=PATH, help="Ask every question of this file instead.")
@click.option("--no-calibration", is_flag=True, help="Do not calibrate for the question's language.")
@click.option("--hybrid", is_flag=True, help="Search the words too (BM25) and fuse both rankings (RRF).")
@model_options
@methods_options
@place_options
def search(
    collection: str,
    text: str | None,
    wanted: Search,
    where: tuple[str, ...],
    question_lang: str | None,
    questions: Path | None,
    no_calibration: bool,
    hybrid: bool,
    model: Model,
    methods: Methods,
    place: Place,
) -> None:
    """Ask COLLECTION a question in any language."""
    if (text is None) == (questions is None):
        raise click.UsageError("give a question, or --questions FILE")
    from xqg_vdb.search.retriever import Retriever
    from xqg_vdb.texts.corpus import read_questions
    from xqg_vdb.types import Question

    if where:
        from xqg_vdb.store.filters import parse_where

        wanted = replace(wanted, where=parse_where(where))
    asked = read_questions(questions) if questions is not None else [Question("0", text or "")]
    asked = [replace(question, lang=question.lang or question_lang) for question in asked]
    with (
        place.collection(collection) as found,
        model.open(made=found.card, collection=collection) as encoder,
        methods.open(threads=model.threads) as (expander, reranker),
        bars(unit=" passages") as progress,
    ):
        strength = 0.0 if no_calibration else None
        retriever = Retriever(encoder, found, calibration=strength, hybrid=hybrid, expander=expander, reranker=reranker)
        answers = retriever.run(asked, wanted, progress=progress)
    seconds = _report_methods(expander, reranker)
    records = [_record(answer) | ({"seconds": seconds} if seconds else {}) for answer in answers]
    show(records, (line for answer in answers for line in _answer_lines(answer, wanted, named=questions is not None)))


def _report_methods(expander: Expander | None, reranker: Reranker | None) -> dict[str, float]:
    """Say on stderr what the methods did; returns mean seconds a question, for JSON."""
    seconds: dict[str, float] = {}
    expanded = "Expanded {questions:.0f} questions, {each:.2f} s each ({fallbacks:.0f} searched as they are)."
    ranked = "Ranked {passages:.0f} passages again, {each:.2f} s a question ({passages_cut:.0f} passages cut)."
    for name, method, told in (("expand", expander, expanded), ("rerank", reranker, ranked)):
        if method is not None:
            counts = method.counters()
            seconds[name] = round(counts["seconds"] / max(counts["questions"], 1), 4)
            say(told.format_map({**counts, "each": seconds[name]}))
    if expander is not None and expander.writer.failure:
        say(expander.writer.failure)
    return seconds


def _answer_lines(answer: Answer, wanted: Search, *, named: bool) -> Iterator[str]:
    if named:
        yield click.style(f"{printable(answer.question.id)}\t{printable(answer.question.text)}", bold=True)
    if not answer.hits:
        past = "has these languages and fields" if not wanted.offset else f"stands behind the first {wanted.offset}"
        say(f"Nothing found: no passage of the collection {past}.")
    for rank, hit in enumerate(answer.hits, 1):
        text = " ".join(printable(hit.text).split())
        span = f"  characters {hit.span[0]}-{hit.span[1]}" if hit.span else ""
        yield f"{rank:2d}  {hit.score:.3f}  {printable(hit.id)}  [{hit.lang}]  {printable(hit.title)}{span}"
        yield "    " + (text if len(text) <= _SNIPPET else text[: _SNIPPET - 1] + "…")


def _record(answer: Answer) -> dict[str, object]:
    question, hits = answer.question, [asdict(hit) for hit in answer.hits]
    return {"id": question.id, "text": question.text, "lang": answer.lang, "hits": hits}


# `xqg-vdb info`.

_MIB = 1 << 20


@command(example="xqg-vdb info demo")
@collection_argument
@place_options
def info(collection: str, place: Place) -> None:
    """Show a collection's card (encoder, recipe, calibration), its counts by language, disk and index.

    While another process has an embedded collection open, the card is all that can be shown.
    """
    with closing(place.open()) as store:
        card, state = store.card(collection), None
        try:
            state = store.admin.state(collection)
        except LockedError as error:
            say(f"{error} The card is all that can be shown meanwhile.")
    facts = {key: value for key, value in asdict(state).items() if key != "card"} if state else None
    rows = {**_card_rows(card), **(_state_rows(state) if state else {})}
    show({**card.to_json(), "state": facts}, (f"{name:12s} {printable(value)}" for name, value in rows.items()))


def _card_rows(card: Card) -> dict[str, str]:
    from xqg_vdb.index.update import since_load

    encoder, recipe, passages = card.encoder, card.recipe, ""
    if card.passage_calibration:
        passages = f", passages λ = {card.passage_calibration:g}, means of {len(card.passage_means) - 1} languages"
    rows = {
        "passages": f"{card.count} (loaded {card.created}, {card.version})",
        "encoder": f"{encoder.source} {encoder.precision}, {encoder.dim} dimensions, fingerprint {encoder.fingerprint}",
        "distance": card.distance,
        "queries": ", ".join(card.query_langs) or "none",
        "recipe": f"alpha {recipe.alpha}, pool {recipe.pool}" if card.query_langs else "plain passages",
        "calibration": f"λ = {card.calibration}{passages}",
    }
    if card.chunk:
        rows["chunks"] = f"the passages are chunks of documents, {card.chunk} (tokens:overlap)"
    if len(card.vectors) > 1:
        rows["vectors"] = ", ".join(card.vectors)
    if (words := card.bm25) is not None:
        rows["hybrid"] = f"BM25 over the words, language {words.lang}, {words.avg_len} tokens a passage"
    if said := since_load(card):
        rows["since then"] = said
    if card.storage:
        rows["options"] = ", ".join(f"{name} {value}" for name, value in card.storage.items())
    return rows


def _state_rows(state: CollectionState) -> dict[str, str]:
    facts = [f"; {fact}" if isinstance(fact, str) else f", {fact} {name}" for name, fact in state.details.items()]
    details = "".join(facts)
    rows = {
        "languages": ", ".join(f"{n} {lang}" for lang, n in state.languages.items()) or "none",
        "index": f"{state.status}, {state.indexed} of {state.points} vectors in a graph{details}",
    }
    if state.disk_bytes is not None:
        rows["disk"] = f"{state.disk_bytes / _MIB:,.1f} MiB"
    return rows


_KEY = "XQG_VDB_SERVE_KEY"


@dataclass(frozen=True)
class _Door:
    """Where a service listens."""

    host: str = option("127.0.0.1", f"Address; any other needs a key in {_KEY}.")
    port: int = option(8765, "0: one that is free.", least=0, most=65535)

    @property
    def rules(self) -> dict[str, Any]:
        """The key and the names under which the service is asked. Raises UsageError where others would need no key."""
        from xqg_vdb.integrations.serve import LOOPBACK

        key = os.environ.get(_KEY, "")
        if self.host not in LOOPBACK and not key:
            raise click.UsageError(f"--host {self.host} lets others in: set a key in {_KEY} first")
        return {"key": key, "hosts": LOOPBACK if self.host in LOOPBACK else ()}

    def listen(self, app: Any, *, path: str = "/") -> None:
        """Serve an ASGI application until Ctrl-C. Raises DataError for a port that cannot be had."""
        import socket
        import threading

        import uvicorn

        try:
            listening = socket.create_server((self.host, self.port))
        except OSError as error:
            said = f"{self.host} port {self.port} cannot be served from ({error.strerror}): give another --port."
            raise DataError(said) from None
        with listening:
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
            ended = threading.Event()  # a thread's own join forgets the thread when it is interrupted (Python 3.11)

            def answer() -> None:
                try:
                    server.run([listening])
                finally:
                    ended.set()

            threading.Thread(target=answer).start()  # signals are heard here
            say(f"http://{self.host}:{listening.getsockname()[1]}{path} answers; Ctrl-C ends it.")
            with suppress(KeyboardInterrupt):
                ended.wait()
            server.should_exit = True
            ended.wait()


@contextmanager
def _service(model: Model, place: Place) -> Iterator[Service]:
    from xqg_vdb.integrations.serve import Service

    with ExitStack() as stack:
        store = stack.enter_context(closing(place.open()))
        with suppress(ServerError):  # one that is away may come back; a folder that another process has open does not
            for name in store.names():
                store.version(name)
        yield Service(store, lambda asked: stack.enter_context(model.open(made=asked.card, collection=asked.name)))


@command(example="xqg-vdb serve --path xqg-data", json=False)
@takes("door", "xqg_vdb.cli.search._Door")
@model_options
@place_options
def serve(door: _Door, model: Model, place: Place) -> None:
    """Serve a page to try the collections, and a JSON API, read-only: plain and calibrated hits side by side.

    The API is described at /openapi.json. With a key, requests say `Authorization: Bearer KEY`.
    """
    from xqg_vdb.integrations.serve import make_app

    rules = door.rules
    with _service(model, place) as service:
        door.listen(make_app(service, **rules))


@command(example="xqg-vdb mcp --path xqg-data\nxqg-vdb mcp --http --port 8766 --url http://localhost:6333", json=False)
@click.option("--http", is_flag=True, help="Answer over streamable HTTP at /mcp, not on standard input and output.")
@click.option("--write", is_flag=True, help="Also offer tools that add and delete passages.")
@takes("door", "xqg_vdb.cli.search._Door", title="Where --http listens")
@model_options
@place_options
def mcp(http: bool, write: bool, door: _Door, model: Model, place: Place) -> None:
    """Give assistants the collections as tools (Model Context Protocol): search, collections, audit.

    An assistant starts it by itself and speaks to it on standard input. With a key, HTTP requests say
    `Authorization: Bearer KEY`.
    """
    from xqg_vdb.integrations.mcp import make_mcp_app, make_server, serve_stdio

    rules = door.rules
    with _service(model, place) as service:
        server = make_server(service, write=write)
        if http:
            door.listen(make_mcp_app(server, **rules), path="/mcp")
        else:
            import anyio

            anyio.run(serve_stdio, server)
