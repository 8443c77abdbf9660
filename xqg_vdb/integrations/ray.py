"""A load as a job of Ray Data: workers encode, fuse and write; the driver makes the version and publishes it.

Two passes, because a language's mean is that of all its queries. Needs the extra `ray`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from xqg_vdb import errors
from xqg_vdb.errors import DataError, ServerError
from xqg_vdb.index.batches import Encode, Fuse, Upsert, combined, digest_of_parts, totals
from xqg_vdb.index.build import WINDOW
from xqg_vdb.index.write import card_of, finished
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.progress import Progress, silent
from xqg_vdb.store import CollectionOptions, open_store
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.types import Card, Distance, Recipe

_IN_FLIGHT = 2  # tables that wait at each actor


def load_dataset(
    dataset: Any,
    name: str,
    *,
    url: str,
    encoder: str | Path,
    recipe: Recipe | None = None,
    options: CollectionOptions | None = None,
    workers: int = 2,
    default_lang: str | None = None,
    progress: Progress = silent,
) -> Card:
    """Load a `ray.data.Dataset` of passages into the collection `name` on the server at `url`; its card.

    dataset: columns as a line of a corpus has fields, in the corpus's order, and perhaps `generated_queries`.
    encoder: a model's folder, at this path on every machine. workers: actors that encode, of one thread each; as many
    write. They take XQG_VDB_API_KEY from their environment. Encoded rows wait in Ray's object store, which spills.
    A job that was stopped is run again as it was: what searches see is the old version until the end. Raises what a
    worker raised: DataError for a bad row or passage, MismatchError for another encoder, ServerError.
    """
    recipe, opened = recipe or Recipe(), Encoder(encoder)
    if recipe.pool == "sum":
        raise DataError("Pool sum wants equally many queries of every passage, which only `load` sees to.")
    facts = opened.facts
    with closing(cast(ServerStore, open_store(url=url, options=options))) as store, _in_order(dataset):
        store.names()  # a server that is away says so before hours of encoding
        tables = dataset.repartition(target_num_rows_per_block=WINDOW, strict=True)
        here = {"encoder": os.path.abspath(encoder), "fingerprint": facts.fingerprint, "default_lang": default_lang}
        encoded = _mapped(tables, Encode, workers, here).materialize()
        parts = list(encoded.map_batches(totals, batch_size=None, batch_format="pyarrow").iter_rows())
        count, digest, generated = combined(parts)
        progress("encoding", count, count)
        distance: Distance = "cosine" if facts.normalize else "dot"
        card = card_of(opened, rows_digest=digest, recipe=recipe, distance=distance, generated=generated)
        with cast(Any, store.writer(name, card=card)) as writer:
            fused = _mapped(encoded, Fuse, workers, {"card": card})
            written, digests = 0, []
            into = {"url": url, "version": writer.version, "card": card}
            for part in _mapped(fused, Upsert, workers, into).iter_rows():
                written += part["points"]
                digests.append(part["digest"])
                progress("writing", written, count)
                writer.renew()
            final = finished(card, count=written, digest=digest_of_parts(digests))
            writer.publish(final, indexed=lambda done: progress("indexing", min(done, count), count))
        return store.card(name)


def _mapped(dataset: Any, step: type, workers: int, arguments: Mapping[str, Any]) -> Any:
    import ray

    pool = ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=_IN_FLIGHT)
    return dataset.map_batches(
        step,
        fn_constructor_kwargs=dict(arguments),
        compute=pool,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0.25,
    )


@contextmanager
def _in_order(dataset: Any) -> Iterator[None]:
    """Tables in the dataset's order, none skipped; what a worker raised, as it raised it."""
    import ray

    options, before = dataset.context.execution_options, dataset.context.execution_options.preserve_order
    options.preserve_order, dataset.context.max_errored_blocks = True, 0
    try:
        yield
    except ray.exceptions.RayError as error:
        said = re.findall(r"^xqg_vdb\.errors\.(\w+): (.*)", str(error), re.MULTILINE)  # Ray hands on words only
        if not said:
            raise ServerError(f"Ray could not do it ({error!s:.300}).") from error
        kind, message = said[-1]
        raise getattr(errors, kind, ServerError)(message) from error
    finally:
        options.preserve_order = before
