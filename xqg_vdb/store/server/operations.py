"""The operators' side of a server: versions, rollback, clean-up, states and snapshots.

An alias is moved before anything is deleted, and nothing that an alias points to is.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

import httpx
from qdrant_client import models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from xqg_vdb.errors import CorruptError, DataError, LockedError, MismatchError, ServerError, XqgError
from xqg_vdb.files import atomic_file, disk_errors, refuse_pipe
from xqg_vdb.store.layout import LANG_KEY, STRANGERS, check_name, digest, id_of, written_by
from xqg_vdb.store.operations import (
    Admin,
    CollectionState,
    Snapshot,
    VersionState,
    check_published,
    latest,
    no_snapshot,
    refuse_existing,
    rollback_target,
)
from xqg_vdb.store.server.client import Limited, NoAccess, NotFound, Refused
from xqg_vdb.store.server.names import (
    CARD_KEY,
    CURSOR_KEY,
    LEAVING_KEY,
    LOADER_KEY,
    Names,
    Watch,
    card_in,
    is_finished,
    is_ours,
    short,
)
from xqg_vdb.types import Card

_log = logging.getLogger(__name__)

_MOST_LANGUAGES = 10_000
_REPLICA_PATIENCE, _REPLICA_LOOK = 600.0, 1.0
_UPLOADED = "{}-restored.snapshot"
_LONGEST_RESTORE = 6 * 3600.0
"""Seconds that a server may take to unpack what it was sent."""


def server_admin(names: Names, *, rest: Callable[[], httpx.Client] | None, grpc_port: int | None) -> Admin:
    """The operators' side of a server. rest: opens a client of its REST interface, for snapshot files."""
    return _ServerAdmin(names, rest, grpc_port)


class _ServerAdmin:
    """Snapshots are the server's own: of one node, where a cluster has several."""

    def __init__(self, names: Names, rest: Callable[[], httpx.Client] | None, grpc_port: int | None) -> None:
        self._names, self._client, self._server = names, names.client, names.server
        self._rest, self._grpc_port = rest, grpc_port

    def versions(self, name: str) -> list[VersionState]:
        published = self._names.target(check_name(name))
        states = []
        for version in self._names.numbered(name):
            try:
                record = self._names.metadata(version)
            except NotFound:  # deleted meanwhile
                continue
            except ServerError:
                states.append(VersionState(short(version), version == published, False, None, reachable=False))
                continue
            if is_ours(record):
                finished = version == published or is_finished(record)
                states.append(VersionState(short(version), version == published, finished, card_in(record)))
        if not states or published is None:
            self._names.refuse_foreign(name)
            problem = self._names.missing(name)
            if not states or isinstance(problem, NoAccess):
                raise problem
        return states

    def rollback(self, name: str, *, version: str | None = None) -> str:
        left, states = self._names.refuse_foreign(check_name(name)), self.versions(name)
        wanted = rollback_target(name, states, version)
        target, card = f"{name}__{wanted}", next(state.card for state in states if state.name == wanted)
        if card is None:
            raise CorruptError(f"{target} on {self._server.where} has no card; load the collection again.")
        with suppress(NotFound):  # then it is being deleted, as `publish` says
            self._check_count(target, card)
        if left == target:
            return wanted
        if left is not None:  # a load of the same build shall write it anew, not put it back as it is
            self._names.write_metadata(left, {CURSOR_KEY: {"rows": 0}})
        self._names.publish(name, target)
        return wanted

    def gc(self, name: str, *, keep: int, unfinished: bool = False) -> list[str]:
        states = self.versions(name)
        check_published(name, states)
        others = [state.name for state in states if state.finished and not state.published]
        staying = latest(others, keep - 1)
        chosen = [version for version in others if version not in staying]
        if unfinished:
            chosen += [state.name for state in states if state.reachable and not state.finished]
        for version in chosen:
            if by := Watch(self._names).holder(f"{name}__{version}"):
                raise LockedError(f"{name}__{version} on {self._server.where} is being loaded by {by}.")
        return sorted(version for version in chosen if self._names.remove(f"{name}__{version}"))

    def state(self, name: str) -> CollectionState:
        version = self._published(name)
        info = self._names.look(lambda: self._client.get_collection(version))
        card = card_in(info.config.metadata or {})
        if card is None:
            raise DataError(f"Collection {name!r} on {self._server.where} has no card: xqg-vdb did not make it.")
        params = info.config.params
        points, threshold = self._names.count(version), info.config.optimizer_config.indexing_threshold or 0
        indexed = max((info.indexed_vectors_count or 0) - (points if card.bm25 else 0), 0)  # it counts words, too
        sleeping = (
            f"no index is built since the server restarted; the next `xqg-vdb add`, or `migrate {name}`, wakes it"
        )
        since = f"below {threshold:,} kB of vectors a segment" if threshold else "while its indexing_threshold is 0"
        small = f"no graph {since}: a search compares all of them"
        details: dict[str, object] = {
            "segments": info.segments_count,
            "shards": params.shard_number,
            "replicas": params.replication_factor,
            "write consistency": params.write_consistency_factor,
            "as gRPC port": self._grpc_port,
            "grey": sleeping if info.status == models.CollectionStatus.GREY else None,
            "graph": small if info.status == models.CollectionStatus.GREEN and points and not indexed else None,
            **(self._strangers(version) if points != card.count else {}),
        }
        return CollectionState(
            card=card, points=points, languages=self._languages(version), indexed=indexed, status=info.status.value,
            disk_bytes=None, details={name: value for name, value in details.items() if value is not None},
        )  # fmt: skip

    def _strangers(self, version: str) -> dict[str, int]:
        """Points by the library that wrote them beside ours, where the server counts by a key without an index."""
        found: dict[str, int] = {}
        ours = models.IsEmptyCondition(is_empty=models.PayloadField(key="meta.lang"))
        for library, key in STRANGERS.items():
            empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=key))
            wanted = models.Filter(must=[ours], must_not=[empty])
            with suppress(Limited, Refused):
                found[f"written by {library}"] = self._names.count(version, wanted=wanted)
        return {by: count for by, count in found.items() if count}

    def _languages(self, version: str) -> dict[str, int]:
        """Points by language; none without an index of languages, and where the server forbids to count."""
        facet = partial(self._client.facet, version, key=LANG_KEY, exact=True)
        try:
            hits = self._names.look(lambda: facet(limit=self._server.most("limit", _MOST_LANGUAGES))).hits
        except (Refused, Limited):
            return {}
        return dict(sorted((str(hit.value), hit.count) for hit in hits))

    def create_snapshot(self, name: str) -> Snapshot:
        version = self._published(name)
        self._check_shards(name, version)
        before = {shot.name for shot in self._snapshots(version)}
        try:  # once: what timed out may be made all the same, and each is a whole copy
            made = self._server.call(lambda: self._client.create_snapshot(version, wait=True), deadline=0.0)
        except ServerError as error:  # of which its kinds are certain
            made = self._appeared(version, before) if type(error) is ServerError else None
            if made is None:
                raise
        return _described(made or next(shot for shot in self._snapshots(version) if shot.name not in before))

    def _appeared(self, version: str, before: set[str]) -> models.SnapshotDescription | None:
        """A snapshot that is made although its request failed; it is waited for as long as a read."""
        end = self._server.clock() + self._names.deadline
        while self._server.clock() < end:
            if new := [shot for shot in self._snapshots(version) if shot.name not in before]:
                return new[0]
            self._server.sleep(_REPLICA_LOOK)
        return None

    def _check_shards(self, name: str, version: str) -> None:
        cluster = self._cluster(version)
        if cluster is None:
            return
        here = {shard.shard_id for shard in cluster.local_shards}
        if len(here) < cluster.shard_count:
            raise MismatchError(
                f"This node of {self._server.where} holds {len(here)} of {cluster.shard_count} shards of {version}, and"
                f" a snapshot is of one node: copy the collection instead with `xqg-vdb migrate {name} --to-path"
                " FOLDER`."
            )

    def _cluster(self, version: str) -> models.CollectionClusterInfo | None:
        """Where its shards are; None where the server does not say."""
        try:
            return self._names.look(lambda: self._client.collection_cluster_info(version))
        except (Refused, NotFound, NotImplementedError, AttributeError):
            return None

    def snapshots(self, name: str) -> list[Snapshot]:
        self._published(name)
        return sorted((_described(shot) for _, shot in self._all_snapshots(name)), key=lambda shot: shot.created)

    def download_snapshot(self, name: str, snapshot: str, to: Path) -> None:
        self._published(name)
        found = {shot.name: (version, shot) for version, shot in self._all_snapshots(name)}
        if snapshot not in found:
            raise no_snapshot(name, snapshot)
        refuse_existing(to)
        version, shot = found[snapshot]
        rest = self._opener()
        self._server.call(lambda: _download(rest, version, snapshot, to=to, checksum=shot.checksum))

    def restore_snapshot(self, name: str, file: Path) -> str:
        self._names.refuse_foreign(check_name(name))
        version = self._names.new_version(name, past=self._names.collections())
        rest = self._opener()
        try:
            self._server.call(lambda: _upload(rest, version, file), deadline=0.0)  # a second try would be hours
            self._await_copies(version)
            card = card_in(self._names.metadata(version))
            if card is None or not card.created:
                raise DataError(f"{file} is no snapshot of a collection that `xqg-vdb load` finished.")
            self._check_count(version, card)
            self._check_texts(version, card, file)
            fresh = {CARD_KEY: replace(card, version=short(version)).to_json(), LOADER_KEY: {}, LEAVING_KEY: {}}
            self._names.write_metadata(version, fresh)
            self._forget_uploads(version)
        except BaseException:
            if not self._forget_uploads(version):
                _log.warning(
                    "%s may keep the upload as snapshots/%s/%s; the next restore under this name replaces it.",
                    self._server.where, version, _UPLOADED.format(version),
                )  # fmt: skip
            self._names.remove(version)
            raise
        self._names.publish(name, version)
        return short(version)

    def _await_copies(self, version: str) -> None:
        """Wait until every copy of every shard is active: until then a count is of some of them."""
        end = self._server.clock() + _REPLICA_PATIENCE
        while (cluster := self._cluster(version)) is not None:
            states = [shard.state for shard in cluster.local_shards] + [shard.state for shard in cluster.remote_shards]
            waiting = [state for state in states if state != models.ReplicaState.ACTIVE]
            if not waiting:
                return
            if self._server.clock() > end:
                raise ServerError(
                    f"{len(waiting)} of {len(states)} copies of the shards of {version} on {self._server.where} are"
                    " still not active; look at its log, then restore the snapshot again."
                )
            self._server.sleep(_REPLICA_LOOK)

    def _check_texts(self, version: str, card: Card, file: Path) -> None:
        """Raise CorruptError when the texts are not those that the card's digest is of, but for `pending`."""
        if not card.digest:
            return
        pages = self._names.pages(version, payload=["id", "chunk", "span", "content", "meta"])
        payloads = (point.payload or {} for page in pages for point in page)
        texts = ((id_of(row), str(row.get("content", ""))) for row in payloads if written_by(row) is None)
        settled = digest((docid, text) for docid, text in texts if docid not in card.pending)
        before = sum(int(held or "0", 16) for held in card.pending.values())
        if (int(settled, 16) + before - int(card.digest, 16)) % (1 << 128):
            raise CorruptError(f"{file} holds other texts than its card promises; take another copy of it.")

    def _forget_uploads(self, version: str) -> bool:
        """Delete the file that an upload leaves among the snapshots of what was made of it; False if out of reach."""
        try:
            for shot in self._snapshots(version):
                self._names.look(partial(self._client.delete_snapshot, version, shot.name))
        except XqgError:
            return False
        return True

    def _snapshots(self, version: str) -> list[models.SnapshotDescription]:
        return self._names.look(lambda: self._client.list_snapshots(version))

    def _all_snapshots(self, name: str) -> list[tuple[str, models.SnapshotDescription]]:
        """(version, snapshot) of all its versions."""
        return [(version, shot) for version in self._names.records(name) for shot in self._snapshots(version)]

    def _published(self, name: str) -> str:
        version = self._names.refuse_foreign(check_name(name))
        if version is None:
            raise self._names.missing(name)
        return version

    def _check_count(self, version: str, card: Card) -> None:
        found = self._names.count(version)
        if found < card.fewest:  # what others wrote beside ours is no damage
            raise CorruptError(
                f"{version} on {self._server.where} holds {found:,} points where its card promises {card.count:,};"
                " load the collection again."
            )

    def _opener(self) -> Callable[[], httpx.Client]:
        if self._rest is None:
            raise DataError(f"{self._server.where} makes no snapshots: only a server does, or an embedded store.")
        return self._rest


def _described(found: models.SnapshotDescription) -> Snapshot:
    return Snapshot(found.name, found.size, found.creation_time or "")


# Snapshot files from and to a server, over its REST interface: the client library can neither fetch nor send them.


def _download(rest: Callable[[], httpx.Client], version: str, snapshot: str, *, to: Path, checksum: str | None) -> None:
    """Copy a snapshot into the file `to`, which appears when it is whole, and its SHA-256 beside it."""
    total, path = hashlib.sha256(), f"/collections/{quote(version, safe='')}/snapshots/{quote(snapshot, safe='')}"
    with _conversation(rest) as client, atomic_file(to) as file, client.stream("GET", path) as answer:
        _refuse_failure(answer)
        for block in answer.iter_bytes(1 << 20):
            total.update(block)
            file.write(block)
        if checksum and total.hexdigest() != checksum:
            raise CorruptError(f"{snapshot} did not arrive as the server has it; download it again.")
        _sum_file(to).write_text(f"{total.hexdigest()}  {to.name}\n", "utf-8")  # as `sha256sum -c` reads it


def _upload(rest: Callable[[], httpx.Client], version: str, file: Path) -> None:
    """Make a collection, which must not exist, of a snapshot; the server checks the SHA-256 that is beside the file."""
    refuse_pipe(file)
    with disk_errors(file), open(file, "rb") as snapshot, _conversation(rest) as client:
        params = {"wait": "true", "priority": "snapshot"}
        if _sum_file(file).exists():
            params["checksum"] = _sum_file(file).read_text("utf-8").partition(" ")[0].strip()
        path, sent = f"/collections/{quote(version, safe='')}/snapshots/upload", (_UPLOADED.format(version), snapshot)
        timeout = httpx.Timeout(client.timeout.connect, read=_LONGEST_RESTORE)
        _refuse_failure(client.post(path, params=params, files={"snapshot": sent}, timeout=timeout))


def _sum_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _refuse_failure(answer: httpx.Response) -> None:
    if answer.status_code != httpx.codes.OK:
        answer.read()
        raise UnexpectedResponse(answer.status_code, answer.reason_phrase, answer.content, answer.headers)


@contextmanager
def _conversation(rest: Callable[[], httpx.Client]) -> Iterator[httpx.Client]:
    """A client whose broken conversations are in the client library's words, which `client.answer_of` understands."""
    try:
        with rest() as client:
            yield client
    except httpx.TransportError as error:
        raise ResponseHandlingException(error) from error
