"""Encoding, generating and loading on a cluster of Ray.

`load_dataset` and `generate_dataset` are jobs of Ray Data: workers encode, fuse and write; the driver makes the version
and publishes it. Two passes, because a language's mean is that of all its queries. `on_cluster` is what `load --ray`
and `generate --ray` work with: everything stays as it is, but the model runs in a cluster's actors. Extra `ray`.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from xqg_vdb import errors
from xqg_vdb.errors import DataError, MissingExtra, ServerError
from xqg_vdb.generate.filters import QueryFilter
from xqg_vdb.generate.local import open_generator
from xqg_vdb.generate.run import BatchGenerator, Job
from xqg_vdb.index.batches import Encode, Fuse, GenerateQueries, Upsert, combined, refuse_another, totals
from xqg_vdb.index.build import WINDOW
from xqg_vdb.index.load import LoadOptions, inputs_of, is_whole, published
from xqg_vdb.index.write import card_of, finished
from xqg_vdb.models.decoder import Decoding
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.models.folder import generator_folder
from xqg_vdb.progress import Progress, silent
from xqg_vdb.store import CollectionOptions, open_store
from xqg_vdb.store.layout import check_name
from xqg_vdb.types import Card, Distance, Passage, Recipe

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it tells its makers of every job
try:
    import ray
except ImportError as error:
    raise MissingExtra("A cluster needs Ray: pip install 'xqg-vdb[ray]'") from error

Model = TypeVar("Model", Encoder, BatchGenerator)
_IN_FLIGHT = 2  # tables that wait at each actor


def load_dataset(
    dataset: Any,
    name: str,
    *,
    url: str,
    encoder: str | Path,
    queries: str | Path | Sequence[str | Path] = (),
    recipe: Recipe | None = None,
    options: CollectionOptions | None = None,
    workers: int = 2,
    default_lang: str | None = None,
    work: str | Path | None = None,
    progress: Progress = silent,
) -> Card:
    """Load a `ray.data.Dataset` of passages into the collection `name` on the server at `url`; its card.

    dataset: columns as a line of a corpus has fields, in the corpus's order, and perhaps `generated_queries`.
    queries: else files of them. encoder: a model's folder. workers: actors that encode, of one thread each; as many
    write. They take XQG_VDB_API_KEY from their environment.
    work: a folder for what is encoded; a job that was stopped continues with it when it is run again. Without one, rows
    wait in Ray's object store, which spills. Folders and files lie at the same path on every machine.
    What searches see is the old version until the end. Raises what a worker raised: DataError for a bad row or
    passage, MismatchError for another encoder, ServerError.
    """
    recipe, opened, name = recipe or Recipe(), Encoder(encoder), check_name(name)
    if recipe.pool == "sum":
        raise DataError("Pool sum wants equally many queries of every passage, which only `load` sees to.")
    files = [queries] if isinstance(queries, str | Path) else queries
    here = {
        "encoder": os.path.abspath(encoder), "fingerprint": opened.facts.fingerprint, "default_lang": default_lang,
        "queries": tuple(map(os.path.abspath, files)), "work": None if work is None else os.path.abspath(work),
    }  # fmt: skip
    with closing(cast(Any, open_store(url=url, options=options))) as store, _in_our_words():
        is_there = name in store.names()  # a server that is away says so before hours of encoding
        encoded = _mapped(_tables(dataset, WINDOW), Encode, workers, here)
        if work is None:
            encoded = encoded.materialize()
        parts = encoded if work is not None else encoded.map_batches(totals, batch_size=None, batch_format="pyarrow")
        count, rows_digest, digest, generated, kept = combined(parts.iter_rows())
        if files and not generated.counts:
            raise DataError(f"{files[0]}: no query belongs to any passage of the dataset; are the ids the same?")
        progress("encoding", count, count)
        distance: Distance = "cosine" if opened.facts.normalize else "dot"
        card = card_of(opened, rows_digest=rows_digest, recipe=recipe, distance=distance, generated=generated)
        given = LoadOptions(default_lang=default_lang)
        inputs = inputs_of(opened, rows_digest, recipe=recipe, distance=distance, questions=None, options=given)
        before = published(store, name) if is_there else None
        if before is not None and before.inputs == inputs and is_whole(store, name, before):
            return before
        with store.writer(name, card=replace(card, count=count)) as writer:
            written = 0
            if work is not None:
                written = writer.committed if writer.committed == count else writer.committed // WINDOW * WINDOW
                encoded = ray.data.from_items([{"file": file} for file in kept[-(-written // WINDOW) :]])
                encoded = _tables(encoded, 1)
            into = {"url": url, "version": writer.version, "card": card}
            points = _mapped(_mapped(encoded, Fuse, workers, {"card": card}), Upsert, workers, into)
            for part in points.iter_rows() if written < count else ():
                written += part["points"]
                if written >= min(count, writer.committed + 4 * WINDOW):
                    writer.commit(written)
                progress("writing", written, count)
                writer.renew()
            writer.publish(
                replace(finished(card, count=count, digest=digest), inputs=inputs),
                indexed=lambda done: progress("indexing", min(done, count), count),
            )
        return cast(Card, store.card(name))


def generate_dataset(
    dataset: Any,
    *,
    generator: str | Path,
    query_langs: Sequence[str],
    n: int = 5,
    prompt: str | None = None,
    decoding: Decoding | None = None,
    query_filter: QueryFilter | None = None,
    workers: int = 2,
    work: str | Path | None = None,
) -> Any:
    """A `ray.data.Dataset` of passages with the column `generated_queries`, as JSON, for `load_dataset`.

    generator: a model's folder, at this path on every machine. Batches, and so queries, are those of `generate_file`.
    work: a folder that all machines see; a job that was stopped continues with it when it is run again. The dataset is
    lazy, as Ray's are: use it once, or `materialize` it. Raises ModelError, DataError.
    """
    job, decoding = Job(tuple(query_langs), n, query_filter=query_filter), decoding or Decoding()
    model = os.path.abspath(generator_folder(generator))
    opened = open_generator(model, query_langs=job.query_langs, prompt=prompt, decoding=decoding)
    here = {
        "model": model, "fingerprint": opened.settings["fingerprint"], "job": job, "prompt": prompt,
        "decoding": decoding, "work": None if work is None else os.path.abspath(work),
    }  # fmt: skip
    batch = opened.batch_size(job.query_langs, job.n)
    return _mapped(_tables(dataset, batch * max(1, WINDOW // batch)), GenerateQueries, workers, here)


def _tables(dataset: Any, rows: int) -> Any:
    """The dataset in its order, in tables of so many rows; none is skipped."""
    dataset.context.execution_options.preserve_order, dataset.context.max_errored_blocks = True, 0
    return dataset.repartition(target_num_rows_per_block=rows, strict=True)


def _mapped(dataset: Any, step: type, workers: int, arguments: Mapping[str, Any]) -> Any:
    pool = ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=_IN_FLIGHT)
    return dataset.map_batches(
        step, fn_constructor_kwargs=dict(arguments), compute=pool, batch_size=None, batch_format="pyarrow",
        num_cpus=0.25,
    )  # fmt: skip


@contextmanager
def _in_our_words() -> Iterator[None]:
    """What a worker raised, as it raised it."""
    try:
        yield
    except ray.exceptions.RayError as error:
        said = re.findall(r"^xqg_vdb\.errors\.(\w+): (.*)", str(error), re.MULTILINE)  # Ray hands on words only
        if not said:
            raise ServerError(f"Ray could not do it ({error!s:.300}).") from error
        kind, message = said[-1]
        raise getattr(errors, kind, ServerError)(message) from error


# Models that run in actors, for whatever takes an encoder or a generator.


class _Actor:
    def __init__(self, make: Callable[[], Model], fingerprint: str) -> None:
        self._made_by: Any = make, fingerprint
        self._model: Any = None

    def ask(self, method: str, items: list[Any], named: Mapping[str, Any]) -> Any:
        if self._model is None:  # here, so that what is wrong with it is told like every other error
            make, fingerprint = self._made_by
            self._model = make()
            refuse_another("model", self._model.fingerprint, fingerprint)
        return getattr(self._model, method)(items, **named)


@contextmanager
def on_cluster(
    address: str, model: Model, make: Callable[..., Model], *, workers: int | None = None
) -> Iterator[Model]:
    """An encoder or generator as it was, but what it computes is computed on the cluster at `address`.

    address: as `ray.init` takes it: `auto`, `local`, `host:6379`, `ray://host:10001`. make: opens the model there, from
    the same path, with one thread; as many times as there are cores, at most `workers`. An actor that ended is started
    and asked again. Raises ServerError where there is no cluster, and what the model raises.
    """
    if ours := not ray.is_initialized():
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            if host:  # Ray would wait for minutes
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            ray.init(address, log_to_driver=False)
        except Exception as error:  # such as a plain one, 30 s after a start on a machine that is too busy
            reason = str(error).partition("\n")[0].rstrip(".")
            said = f"There is no Ray cluster at {address!r} ({reason}): correct --ray, or start it."
            raise ServerError(said) from error
    cores = int(ray.cluster_resources().get("CPU", 1))
    kind = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(_Actor)
    actors = [kind.remote(partial(make, threads=1), model.fingerprint) for _ in range(min(cores, workers or cores))]
    free: SimpleQueue[Any] = SimpleQueue()
    for actor in actors:
        free.put(actor)

    def ask(method: str, items: Iterable[Any], named: Mapping[str, Any]) -> Any:
        actor = free.get()
        try:
            with _in_our_words():
                return ray.get(actor.ask.remote(method, list(items), named))
        finally:
            free.put(actor)

    def encode_queries(
        texts: Iterable[str], *, question_langs: Sequence[str | None] | None = None, calibrate: bool = True
    ) -> Any:
        return ask("encode_queries", texts, {"question_langs": question_langs, "calibrate": calibrate})

    def generate_batch(batch: Sequence[Passage], *, query_langs: Sequence[str], n: int, attempt: int = 0) -> Any:
        return ask("generate_batch", batch, {"query_langs": query_langs, "n": n, "attempt": attempt})

    far = copy(model)
    far.at_once = len(actors) + 1
    vars(far)["encode_passages"] = lambda texts: ask("encode_passages", texts, {})
    vars(far).update(encode_queries=encode_queries, generate_batch=generate_batch)
    try:
        with redirect_stdout(sys.stderr):  # where Ray tells of workers that ended
            yield far
    finally:
        for actor in actors:
            ray.kill(actor)
        if ours:
            ray.shutdown()
