"""Everything that this package says to the embedded engine, and the one place where its errors become ours.

Every engine error is a bare `Exception` whose text alone tells, so the texts are matched here and nowhere else.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import numpy as np
import qdrant_edge as edge

from xqg_vdb.errors import CorruptError, DataError, DiskError, LockedError, MismatchError, XqgError, no_room
from xqg_vdb.files import MIB, disk_errors, require_space
from xqg_vdb.progress import windows
from xqg_vdb.store.gate import Rows
from xqg_vdb.store.layout import LANG_KEY, OVERSAMPLING, TEXT_SPARSE, CollectionOptions, Found, Quantization, point_id
from xqg_vdb.types import Card, PointBatch, QuestionRows, Search, SparseVector

Shard = edge.EdgeShard
_DISTANCES = {"cosine": edge.Distance.Cosine, "dot": edge.Distance.Dot}
_TO_OPEN = 64 * MIB  # a log of 32 MiB is allocated even to read; without room for it the engine dies of SIGBUS
_QUERY_BATCH = 64
_SCROLL_PAGE = 512
_MOST_LANGUAGES = 10_000
_M, _EF_CONSTRUCT, _FULL_SCAN_KB = 16, 100, 10_000  # the engine's own defaults
_QUANTIZATIONS: dict[Quantization | None, Any] = {
    None: None,
    "scalar": edge.ScalarQuantizationConfig(edge.ScalarType.Int8, quantile=0.99, memory=edge.Memory.Pinned),
    "product": edge.ProductQuantizationConfig(edge.CompressionRatio.X16, memory=edge.Memory.Pinned),
    "binary": edge.BinaryQuantizationConfig(memory=edge.Memory.Pinned),
    "turbo": edge.TurboQuantQuantizationConfig(bits=edge.TurboQuantBitSize.Bits4, memory=edge.Memory.Pinned),
}


def create(path: Path, card: Card, options: CollectionOptions) -> Shard:
    """A new shard in an empty folder, its language index made before the first point. WAL on: it is the lock, too."""
    graph = None
    if options.hnsw_m or options.hnsw_ef_construct:
        graph = edge.HnswIndexConfig(options.hnsw_m or _M, options.hnsw_ef_construct or _EF_CONSTRUCT, _FULL_SCAN_KB)
    vectors = edge.EdgeVectorParams(
        size=card.encoder.dim,
        distance=_DISTANCES[card.distance],
        hnsw_config=graph,
        quantization_config=_QUANTIZATIONS[options.quantization],
        memory=_memory(options.on_disk_vectors),
    )
    sparse = edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if card.bm25 is not None else None)
    config = edge.EdgeConfig(
        vectors=dict.fromkeys(card.vectors, vectors),
        sparse_vectors={TEXT_SPARSE: sparse},
        payload_memory=_memory(options.on_disk_payload),
        wal_enabled=True,
    )
    with errors(path):
        shard = Shard.create(str(path), config)
        for key in [LANG_KEY, "id"] if card.chunk else [LANG_KEY]:
            shard.update(edge.UpdateOperation.create_field_index(key, edge.KeywordIndexParams()))
        shard.flush()
    return shard


def load(path: Path) -> Shard:
    """The shard in a folder, its write-ahead log replayed. Raises CorruptError, LockedError, DiskError."""
    if not path.is_dir():  # the engine would create a part of it
        raise CorruptError(f"{path} is missing; load the collection again.")
    with disk_errors(path):
        require_space(path, needed=_TO_OPEN)
    with errors(path):
        return Shard.load(str(path))


def load_checked(path: Path, card: Card) -> Shard:
    """`load`, after its points were counted: the engine loads a damaged shard with fewer and says nothing."""
    shard = load(path)
    with errors(path):
        points = count(shard)
    if not card.fewest <= points <= card.fewest + len(card.pending):
        shard.close()
        raise CorruptError(
            f"{path} holds {points:,} points where its card promises {card.count:,}: it is damaged; load it again."
        )
    return shard


def upsert_operation(rows: Rows, batch: PointBatch) -> edge.UpdateOperation:
    """The operation that writes checked rows; building it touches no shard.

    A vector goes in as a memoryview of its row: the engine reads its items one by one, and those of a memoryview are
    plain floats, twice as fast as `tolist` and thrice as fast as an array's boxed scalars (17, 37 and 47 µs at 384).
    """
    columns: dict[str, list[Any]] = {
        name: [memoryview(row) for row in np.ascontiguousarray(matrix)] for name, matrix in batch.vectors.items()
    }
    if batch.sparse is not None:
        columns[TEXT_SPARSE] = [_asked(weights) for weights in batch.sparse]
    points = [
        edge.Point(docid, cast(Any, dict(zip(columns, row, strict=True))), payload)
        for docid, payload, row in zip(rows.ids, rows.payloads, zip(*columns.values(), strict=True), strict=True)
    ]
    return edge.UpdateOperation.upsert_points(points)


def delete_operation(points: Sequence[UUID]) -> edge.UpdateOperation:
    """The operation that removes points."""
    return edge.UpdateOperation.delete_points(list(points))


def payloads(shard: Shard, docids: Sequence[str], *, chunks: bool = False) -> list[Mapping[str, Any]]:
    """The payloads of those passages that are there; `chunks`: of all chunks of these documents."""
    if chunks:
        return [payload for payload, _ in scroll(shard, with_vectors=False, wanted=_any("id", docids))]
    records = shard.retrieve([point_id(docid) for docid in docids], with_payload=True, with_vector=False)
    return [record.payload or {} for record in records]


def passages(shard: Shard, points: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """The payloads of those points that are there, by the points' ids."""
    records = shard.retrieve([UUID(point) for point in points], with_payload=True, with_vector=False)
    return {str(record.id): record.payload or {} for record in records}


def sync_log(path: Path) -> None:
    """Make what was changed durable in the shard's write-ahead log, which `load` replays.

    `flush` does the same for all files, and holds Python's lock for as long as the disk takes: no thread can search.
    A `tmp-` file holds nothing yet, and has another name as soon as the engine has made it, at any moment.
    """
    for name in [*sorted((path / "wal").glob("[!t]*")), path / "wal"]:
        handle = os.open(name, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def unindexed(shard: Shard, card: Card) -> int:
    """How many points every search looks at one by one."""
    info = shard.info()
    return info.points_count - info.indexed_vectors_count // len(card.vectors)


def count(shard: Shard, langs: Sequence[str] | None = None) -> int:
    """Exact number of points, of those languages when given."""
    return shard.count(edge.CountRequest(exact=True, filter=_any(LANG_KEY, langs)))


def languages(shard: Shard) -> dict[str, int]:
    """How many points each language has, by language."""
    hits = shard.facet(edge.FacetRequest(LANG_KEY, limit=_MOST_LANGUAGES, exact=True)).hits
    return dict(sorted((str(hit.value), hit.count) for hit in hits))


def query(shard: Shard, questions: QuestionRows, *, limit: int, search: Search) -> list[list[Found]]:
    """Per question the `limit` nearest, best first; equal scores in no order."""
    compared_again = edge.QuantizationSearchParams(ignore=search.exact, rescore=True, oversampling=OVERSAMPLING)
    params = edge.SearchParams(hnsw_ef=search.ef, exact=search.exact, quantization=compared_again)
    wanted = _any(LANG_KEY, search.passage_langs)
    if search.where is not None:
        from xqg_vdb.store.filters import as_filter  # brings the server's client

        asked = _filter(as_filter(search.where))
        wanted = asked if wanted is None else edge.Filter(must=[wanted, asked])
    ask = partial(edge.QueryRequest, limit=limit, params=params, filter=wanted, with_payload=search.texts)
    requests = [ask(query=edge.Query.Nearest(_asked(row), using=search.using)) for row in questions]
    if len(requests) == 1:
        answers = [shard.query(requests[0])]
    else:
        batches = windows(requests, _QUERY_BATCH)
        answers = [points for batch in batches for points in shard.query_batch(edge.QueryBatchRequest(batch))]
    return [[(point.score, point.payload or {"id": str(point.id)}) for point in points] for points in answers]


def scroll(
    shard: Shard, *, with_vectors: bool, wanted: edge.Filter | None = None
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(payload, vectors by name) of every point that is wanted."""
    offset: Any = None
    ask = partial(edge.ScrollRequest, limit=_SCROLL_PAGE, filter=wanted, with_payload=True, with_vector=with_vectors)
    while True:
        records, offset = shard.scroll(ask(offset=offset))
        for record in records:
            yield record.payload or {}, cast(Mapping[str, Any], record.vector or {})
        if offset is None:
            return


def _asked(vector: Any) -> Any:
    if isinstance(vector, SparseVector):
        return edge.SparseVector(vector.indices.tolist(), vector.values.tolist())
    return memoryview(vector)


def _memory(on_disk: bool | None) -> edge.Memory | None:
    return None if on_disk is None else edge.Memory.Cold if on_disk else edge.Memory.Cached


def _any(key: str, values: Sequence[str] | None) -> edge.Filter | None:
    if values is None:
        return None
    return edge.Filter(must=[edge.FieldCondition(key, match=edge.MatchAny(any=list(values)))])


def _filter(wanted: Any) -> edge.Filter:
    """Qdrant's `models.Filter`, whose classes the engine has under the same names."""
    parts = {name: _conditions(getattr(wanted, name)) for name in ("must", "should", "must_not")}
    least = wanted.min_should
    more = least and edge.MinShould(_conditions(least.conditions) or [], least.min_count)
    return edge.Filter(**parts, min_should=more)


def _conditions(wanted: Any) -> list[Any] | None:
    if wanted is None:
        return None
    return list(map(_condition, wanted if isinstance(wanted, list) else [wanted]))


def _condition(wanted: Any) -> Any:
    kind = type(wanted).__name__
    if kind == "Filter":
        return _filter(wanted)
    if kind == "NestedCondition":
        return edge.NestedCondition(wanted.nested.key, _filter(wanted.nested.filter))
    if kind == "HasIdCondition":
        return edge.HasIdCondition(set(wanted.has_id))
    if kind in ("IsEmptyCondition", "IsNullCondition"):
        return getattr(edge, kind)(next(iter(wanted.model_dump().values()))["key"])
    if kind != "FieldCondition" or wanted.geo_bounding_box or wanted.geo_radius or wanted.geo_polygon:
        raise DataError(f"An embedded collection cannot filter by {kind}({wanted!r:.80}); use a Qdrant server (--url).")
    count = wanted.values_count and edge.ValuesCount(**wanted.values_count.model_dump())
    bounds = wanted.range
    if bounds and type(bounds).__name__ == "Range":
        bounds = edge.RangeFloat(**bounds.model_dump())
    elif bounds:
        bounds = edge.RangeDateTime(**{name: value and value.isoformat() for name, value in bounds})
    return edge.FieldCondition(
        wanted.key, match=wanted.match and _same(wanted.match), range=bounds,
        values_count=count, is_empty=wanted.is_empty, is_null=wanted.is_null,
    )  # fmt: skip


def _same(match: Any) -> Any:
    (value,) = match.model_dump().values()
    return getattr(edge, type(match).__name__)(_TRUTH[value] if isinstance(value, bool) else value)


# The engine's binding takes True for the integer 1, and so numpy's before 2.3; it knows a truth value by this name.
_TRUTH = {
    truth: type("bool_", (), {"__module__": "numpy", "__bool__": lambda self, truth=truth: truth})()
    for truth in (False, True)
}


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Translate what the engine raises inside the block, about the shard in `path`."""
    try:
        yield
    except (XqgError, MemoryError):
        raise
    except (TypeError, ValueError) as error:  # its complaints about arguments; the gate should have been first
        raise DataError(f"The engine refuses the data for {path}: {error}.") from error
    except Exception as error:
        raise no_room(error) or _translated(str(error), path) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how the engine meets some damaged files; no Exception
            raise
        raise no_room(error) or _damaged(str(error).partition("\n")[0], path) from error


_COMPLAINTS: tuple[tuple[str, type[XqgError], str], ...] = (
    ("WouldBlock", LockedError,
     "{path} is open in another process or handle; close that one, or use a Qdrant server (--url)."),
    ("No space left|uota exceeded|File too large", DiskError,
     "The disk of {path} is full, or a limit met; free some space and run the same command again."),
    ("ermission denied|Read-only file system", DiskError,
     "{path} may not be written, and the embedded engine writes even to read; change its permissions."),
    ("Vector dimension error|Not existing vector name", MismatchError,
     "The vectors do not fit the collection in {path}: {text}."),
    ("Validation failed|is incompatible with existing segments", MismatchError,
     "{path} was made with other settings: {text}."),
    ("Too many open files", XqgError, "Too many files are open for {path}; raise the limit (ulimit -n), try again."),
)  # fmt: skip


def _translated(text: str, path: Path) -> XqgError:
    for words, kind, message in _COMPLAINTS:
        if re.search(words, text):
            return kind(message.format(path=path, text=text))
    return _damaged(text, path)


def _damaged(text: str, path: Path) -> CorruptError:
    name = path.parent.parent.name  # of the collection
    return CorruptError(
        f"The engine cannot use {path}: {text}. Go back with `xqg-vdb rollback {name}` or `xqg-vdb snapshot restore"
        f" {name} FILE`, or load the collection again."
    )


# Build the index of a closed shard in a process of its own.

_CHILD = """
import ctypes, os, signal, sys
if sys.platform == "linux":  # end with the parent; a Python thread could not: `optimize` holds the GIL
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[2]):  # it ended before we asked
    sys.exit("the loading process has ended")
os.nice(sum(map(int, sys.argv[3:])))
import qdrant_edge
opened = qdrant_edge.EdgeShard.load(sys.argv[1])
opened.optimize()
opened.close()
"""


def build_index(shard: Path, *, nice: int = 0, began: Callable[[subprocess.Popen[bytes]], object] = id) -> None:
    """Merge and index the segments of a closed shard; a stopped build loses nothing and can be repeated.

    nice: of how low a priority. began: told of the child, which may be killed.
    """
    paths = os.pathsep.join(path for path in sys.path if path)
    child = subprocess.Popen(  # noqa: S603 - our own words
        [sys.executable, "-P", "-c", _CHILD, str(shard), str(os.getpid()), str(nice)],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C goes to the caller, which then ends the child
    )
    with child:
        try:
            began(child)
            _, said = child.communicate()
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        raise _failure(child.returncode, said.decode("utf-8", "replace"), shard)


def follow(path: Path, source: Shard, points: Iterable[UUID]) -> None:
    """Give a closed shard those of the points that `source` has, and take the others from it."""
    shard = load(path)
    with errors(path):
        for part in windows(points, _SCROLL_PAGE):
            records = source.retrieve([*part], with_payload=True, with_vector=True)
            there = [edge.Point(record.id, cast(Any, record.vector), record.payload) for record in records]
            gone = set(part) - {UUID(str(record.id)) for record in records}
            shard.update(edge.UpdateOperation.upsert_points(there))
            shard.update(edge.UpdateOperation.delete_points(list(gone)))
        shard.flush()
        shard.close()


def clear_leftovers(shard: Path) -> None:
    """Delete what a killed engine left: half-built segments, half-written files. Nothing may have the shard open."""
    for path in [*(shard / "temp_segments").glob("*"), *shard.rglob(".atomicwrite*")]:
        shutil.rmtree(path, ignore_errors=True)


def _failure(code: int, stderr: str, shard: Path) -> XqgError:
    again = "run the same command again: nothing was lost"
    if code == -signal.SIGBUS:
        return DiskError(f"Building the index of {shard} met a full disk; free some space and {again}.")
    if code < 0:
        return XqgError(f"Building the index of {shard} was killed (signal {-code}; out of memory?); {again}.")
    last = stderr.strip().rpartition("\n")[2]
    if no_room(Exception(stderr)):
        return XqgError(f"There was not enough memory to build the index of {shard}; {again}.")
    if "WouldBlock" in last:
        return LockedError(f"{shard} is still being indexed by a load that was stopped; wait a moment, then {again}.")
    return CorruptError(f"Building the index of {shard} failed ({last}); {again}.")
