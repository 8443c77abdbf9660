"""SIGKILL of a real Qdrant server, or of a node of three, at random moments of a command; it starts again at once.

The command waits and goes on, or gives up with a sentence; then the same command again ends it. Run where
XQG_TEST_QDRANT_COMMAND says how to start a server.
"""

import os
import threading
import time
from unittest.mock import patch

import numpy as np
import qdrant_processes
from tally import Tally

from xqg_vdb import Collection, load
from xqg_vdb.errors import XqgError
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.index.migrate import migrate
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.layout import CollectionOptions
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.testing import HashEncoder

N = 400
ENCODER = HashEncoder(dim=16)
RECIPE = LoadOptions()


def rows(edition, start=0, stop=N):
    return [{"id": f"p{i}", "text": f"w{i} w{i % 7} edition{edition}", "lang": "en"} for i in range(start, stop)]


class Place:
    """The servers, and a collection on them from which each round begins anew."""

    def __init__(self, folder, nodes, command):
        copies = {"shards": 3, "replication_factor": 3 if command == "snapshot restore" else 2} if nodes > 1 else {}
        self.options = CollectionOptions(bulk=False, keep=2, **copies)
        self.folder, self.command, self.name = folder, command, {"migrate": "copy", "snapshot restore": "back"}
        self.name = self.name.get(command, "wiki")

    def store(self, url):
        return ServerStore.connect(url, options=self.options)

    def begin(self, url):
        """The collection as it is before."""
        with self.store(url) as store:
            for name in ("wiki", self.name):
                if name in store.names():
                    store.delete(name)
            load(rows(1), "wiki", encoder=ENCODER, store=store, options=RECIPE)
            if self.command == "snapshot restore" and not (self.folder / "file").exists():
                store.admin.download_snapshot("wiki", store.admin.create_snapshot("wiki").name, self.folder / "file")
            if self.command == "migrate" and not (self.folder / "source").exists():
                with EmbeddedStore(self.folder / "source", free_space_floor=0) as source:
                    load(rows(2), "wiki", encoder=ENCODER, store=source, options=RECIPE)

    def run(self, url):
        """The command once."""
        with self.store(url) as store:
            if self.command == "load":
                load(rows(2), "wiki", encoder=ENCODER, store=store, options=RECIPE)
            elif self.command == "add":
                Collection("wiki", store, encoder=ENCODER).add(rows(2, N // 2, 2 * N))
            elif self.command == "delete":
                Collection("wiki", store, encoder=ENCODER).delete([f"p{i}" for i in range(0, N, 3)])
            elif self.command == "migrate":
                with EmbeddedStore(self.folder / "source", free_space_floor=0) as source:
                    migrate(source, "wiki", store, to_name="copy")
            else:
                store.admin.restore_snapshot("back", self.folder / "file")

    def content(self, url):
        """{id: (text, vector)} of what is published."""
        with self.store(url) as store:
            if self.name not in store.names():
                return {}
            points = store.scroll(self.name, with_vectors=True)
            return {point.id: (point.payload["content"], point.vectors["text-dense"]) for point in points}


def point_equal(left, right):
    return left is not None and right is not None and left[0] == right[0] and np.allclose(left[1], right[1], atol=1e-5)


def equal(left, right):
    return left.keys() == right.keys() and all(point_equal(left[key], right[key]) for key in left)


def between(command, now, before, after):
    """Whether what is there after a command that gave up is old or new; of add and delete, each point so."""
    if command not in ("add", "delete"):
        return equal(now, before) or equal(now, after)
    return all(
        (now.get(key) is None and (before.get(key) is None or after.get(key) is None))
        or point_equal(now.get(key), before.get(key)) or point_equal(now.get(key), after.get(key))
        for key in before.keys() | after.keys() | now.keys()
    )  # fmt: skip


def killed(command, nodes):
    """The attack on one command."""

    def attack(rng, folder, rounds):
        tally = Tally()
        if not qdrant_processes.COMMAND:
            tally.note(f"not run: {qdrant_processes.NO_COMMAND}")
            return tally
        place = Place(folder, nodes, command)
        with (
            qdrant_processes.running(folder, nodes) as servers,
            patch.dict(os.environ, {"XQG_VDB_CACHE": str(folder / "cache")}),
        ):
            url = servers[0].url
            place.begin(url)
            before, began = place.content(url), time.monotonic()
            place.run(url)
            took, after = time.monotonic() - began, place.content(url)
            assert not equal(before, after), f"{command} changes nothing"
            for _ in range(rounds):
                place.begin(url)
                one_round(place, servers, rng.choice(servers), rng.uniform(0, took), tally, before, after)
        return tally

    return attack


def one_round(place, servers, victim, delay, tally, before, after):
    """Kill one server amid the command, start it again, and look."""
    url, outcome = servers[0].url, []

    def work():
        try:
            place.run(url)
            outcome.append("done")
        except XqgError as error:
            outcome.append(f"given up ({type(error).__name__})")
            tally.note(outcome[0])

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(delay)
    tally.hit += worker.is_alive()
    victim.kill()
    victim.start()
    worker.join(timeout=900)  # a restore waits 600 s for its copies
    tally.tried += 1
    where = f"killed after {delay:.2f} s, port {victim.port}"
    if not outcome:
        tally.bad.append(f"{where}: it neither ended nor gave up")
        return
    now = place.content(url)
    if outcome[0] == "done":
        tally.note("done")
        if not equal(now, after):
            tally.bad.append(f"{where}: done, but the collection is another")
        return
    if not between(place.command, now, before, after):
        tally.bad.append(f"{where}: {outcome[0]}, and the collection is neither the old nor the new")
    place.run(url)
    if not equal(place.content(url), after):
        tally.bad.append(f"{where}: {outcome[0]}, and the same command again did not end it")


ATTACKS = {
    f"SIGKILL of {who} under {command}": (2, killed(command, nodes))
    for who, nodes in (("a server", 1), ("one server of three", 3))
    for command in ("load", "add", "delete", "migrate", "snapshot restore")
}
