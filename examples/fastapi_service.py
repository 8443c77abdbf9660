"""A search service: add, delete and search over one collection, one encoder for all, asynchronous, stopped gracefully.

pip install 'xqg-vdb[starter]' fastapi uvicorn; then `python examples/fastapi_service.py`, or with uvicorn's own options
`uvicorn --app-dir examples fastapi_service:app`. XQG_VDB_PATH or XQG_VDB_URL say where the data lives: a folder belongs
to one process; several workers share a server.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from xqg_vdb import AsyncRetriever, Collection, Encoder, Retriever, load
from xqg_vdb.errors import DataError, LockedError, XqgError
from xqg_vdb.store import open_store

NAME = "service"
Answer = TypeVar("Answer")


class NewPassage(BaseModel):
    """A passage as clients send it."""

    id: str
    text: str = Field(min_length=1)
    title: str = ""
    lang: str | None = None
    meta: dict[str, Any] = Field(default_factory=dict)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open everything once; at the end requests have been answered, and what was opened is closed."""
    with open_store() as store, Encoder(os.environ.get("ENCODER", "starter")) as encoder:
        app.state.store, app.state.encoder, app.state.retriever = store, encoder, None
        app.state.writing = asyncio.Lock()
        await connect(app)
        yield
        if app.state.retriever is not None:
            await app.state.retriever.aclose()


async def connect(app: FastAPI) -> None:
    """The retriever of the collection, for all requests, as soon as there is one: another worker may have made it."""
    if app.state.retriever is None and NAME in await asyncio.to_thread(app.state.store.names):
        collection = Collection(NAME, app.state.store, encoder=app.state.encoder)
        app.state.retriever = AsyncRetriever(Retriever(app.state.encoder, collection))


async def retriever() -> AsyncRetriever:
    await connect(app)
    if app.state.retriever is None:
        raise HTTPException(404, "There are no passages yet: POST some to /passages.")
    return app.state.retriever


app = FastAPI(title="Search in any language", lifespan=lifespan)


@app.exception_handler(XqgError)
async def explain(request: Request, error: XqgError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 400 if isinstance(error, DataError) else 503)


@app.post("/passages")
async def add(passages: Annotated[list[NewPassage], Field(min_length=1)]) -> dict[str, Any]:
    records = [{key: value for key, value in asdict_of(passage).items() if value is not None} for passage in passages]
    return await in_turn(lambda: add_records(records))


async def add_records(records: list[dict[str, Any]]) -> dict[str, Any]:
    await connect(app)
    if app.state.retriever is None:  # the first passages make the collection
        await asyncio.to_thread(load, records, NAME, encoder=app.state.encoder, store=app.state.store)
        await connect(app)
        return {"added": len({record["id"] for record in records}), "replaced": 0, "unchanged": 0}
    report = await app.state.retriever.add(records)
    return {"added": report.added, "replaced": report.replaced, "unchanged": report.unchanged}


async def in_turn(write: Callable[[], Awaitable[Answer]]) -> Answer:
    """One write at a time; what another worker is writing, or the collection that it is making, is waited for."""
    async with app.state.writing:
        for _ in range(60):
            try:
                return await write()
            except LockedError:
                await asyncio.sleep(0.5)
        return await write()


def asdict_of(passage: NewPassage) -> dict[str, Any]:
    """The passage's record: its other fields stand beside the text."""
    record = passage.model_dump()
    return {**record.pop("meta"), **record}


@app.delete("/passages/{docid}")
async def delete(docid: str) -> dict[str, int]:
    asked = await retriever()
    report = await in_turn(lambda: asked.delete([docid]))
    if report.missing:
        raise HTTPException(404, f"There is no passage {docid!r}.")
    return {"deleted": report.deleted}


@app.get("/search")
async def search(
    q: Annotated[str, Query(min_length=1, max_length=2000)],
    k: Annotated[int, Query(ge=1, le=100)] = 10,
    lang: str | None = None,
    passage_lang: Annotated[list[str] | None, Query()] = None,
) -> list[dict[str, Any]]:
    hits = await (await retriever()).search(q, k=k, question_lang=lang, passage_langs=passage_lang)
    return [asdict(hit) for hit in hits]


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")), timeout_graceful_shutdown=30)
