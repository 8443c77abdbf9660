"""What strangers hand over: model folders and snapshots made to hurt, servers that drip, servers that repeat the key.

Each ends in a sentence and an exit code, or in what a good one gives; never in a traceback, a file outside its folder,
or a command that hangs.
"""

import gzip
import io
import json
import os
import shutil
import socket
import tarfile
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from kills import Place, points_of
from tally import Tally

LIMIT = 100  # seconds that a command may take on a machine that does other things, too


class Bomb:
    """What runs when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


def said(place, *argv, env=None):
    """The exit code of a command, and what it says."""
    log = place.folder / "one-said"
    log.unlink(missing_ok=True)
    place.workers.said = log
    code = place.workers.run(*argv, env={"XQG_FAULTS_LIMIT": str(LIMIT), **(env or {})})
    return code, log.read_text(errors="replace")


def changed(**values):
    """A model folder whose manifest says something else; without its checksum, as a stranger leaves it out."""

    def change(folder, marker):
        record = json.loads((folder / "model.json").read_text())
        for key in list(record):
            if "check" in key:
                del record[key]
        for place, value in values.items():
            at, parts = record, place.split("__")
            for part in parts[:-1]:
                at = at[part]
            at[parts[-1]] = value
        (folder / "model.json").write_text(json.dumps(record))

    return change


def replaced(name, make):
    """A model folder one of whose files is another thing; its manifest says what that is, where it can."""

    def change(folder, marker):
        (folder / name).unlink()
        make(folder / name, marker)
        with suppress(OSError):
            if (folder / name).is_file() and (folder / name).stat().st_size < 1 << 24:
                from xqg_vdb.models.folder import sha256_of

                record = json.loads((folder / "model.json").read_text())
                changed(files={**record["files"], name: sha256_of(folder / name)})(folder, marker)

    return change


def sized(path, marker):
    with path.open("wb") as file:
        file.truncate(20 << 30)


def outside(path, marker):
    path.symlink_to("/etc/passwd")


def pickled(path, marker):
    with path.open("wb") as file:
        np.save(file, np.array([Bomb(marker)], object), allow_pickle=True)


def archive_of_pickles(path, marker):
    np.savez(path, langs=np.array([Bomb(marker)], object), means=np.array([Bomb(marker)], object))
    if not path.exists():
        path.with_name(path.name + ".npz").rename(path)


GRAPH, WORDS, MEANS = "model.onnx", "tokenizer.json", "calibration.npz"
MODELS = {
    "a name that climbs": changed(files__model={"../../../etc/passwd": "0" * 64}),
    "files that are a list": changed(files=["model.onnx"]),
    "files that are numbers": changed(files={"model.onnx": 7}),
    "a name with NUL": changed(files={"a\0b": "0" * 64}),
    "no files": changed(files={}),
    "another kind": changed(kind="pickle"),
    "encoder that is a text": changed(encoder="x"),
    "dim of 2 to the 70": changed(encoder__dim=2**70),
    "dim below zero": changed(encoder__dim=-1),
    "dim that is not": changed(encoder__dim=None),
    "pooling of its own": changed(encoder__pooling="__import__('os')"),
    "prefix that is a list": changed(encoder__query_prefix=[1]),
    "length of nothing": changed(encoder__max_length=0),
    "calibration that is a list": changed(calibration=[1, 2]),
    "deep": lambda folder, marker: (folder / "model.json").write_text("[" * 200_000),
    "deep objects": lambda folder, marker: (folder / "model.json").write_text('{"a":' * 200_000),
    "nothing": lambda folder, marker: (folder / "model.json").write_text(""),
    "a manifest of 20 GiB": replaced("model.json", sized),
    "a manifest that is a pipe": replaced("model.json", lambda path, marker: os.mkfifo(path)),
    "a manifest that is a folder": replaced("model.json", lambda path, marker: path.mkdir()),
    "a manifest that leads to itself": replaced("model.json", lambda path, marker: path.symlink_to(path)),
    "a tokenizer that is a pipe": replaced(WORDS, lambda path, marker: os.mkfifo(path)),
    "a tokenizer without end": replaced(WORDS, lambda path, marker: path.symlink_to("/dev/zero")),
    "a tokenizer from elsewhere": replaced(WORDS, outside),
    "a tokenizer that is deep": replaced(WORDS, lambda path, marker: path.write_text("[" * 200_000)),
    "a tokenizer that is empty": replaced(WORDS, lambda path, marker: path.write_text("{}")),
    "a graph from elsewhere": replaced(GRAPH, outside),
    "a graph without end": replaced(GRAPH, lambda path, marker: path.symlink_to("/dev/zero")),
    "a graph that is a pickle": replaced(GRAPH, pickled),
    "a graph that is noise": replaced(GRAPH, lambda path, marker: path.write_bytes(os.urandom(5000))),
    "means that are a pickle": replaced(MEANS, pickled),
    "means of pickles": replaced(MEANS, archive_of_pickles),
}


def hostile_models(rng, folder, rounds):
    """Each of the folders in turn, as the encoder of a search."""
    place, tally = Place(folder), Tally()
    marker = folder / "marker"
    with place.workers:
        at = place.base()
        ask = ["search", "wiki", "w1 w2", "--path", at / "store", "--threads", 1, "--json", "--encoder"]
        good = said(place, *ask, place.folder / "model")
        assert good[0] == 0, good
        for name in rng.sample(sorted(MODELS), k=min(rounds, len(MODELS))):
            model = shutil.copytree(place.folder / "model", folder / "hostile")
            try:
                MODELS[name](model, marker)
            except FileNotFoundError:  # this model has no such file
                shutil.rmtree(model)
                continue
            judge(tally, name, said(place, *ask, model), good, marker)
            shutil.rmtree(model)
    return tally


def judge(tally, name, found, good, marker):
    """Count one round: a sentence and an exit code, or the very same answer."""
    (code, text), ended = found, time.monotonic()
    tally.tried += 1
    tally.hit += code != 0
    tally.note("refused" if code else "the same answers")
    if marker.exists() or code < 0 or "Traceback" in text or (code == 0 and text != good[1]) or not ended:
        tally.bad.append(f"{name}: ended {code}{', and its code ran' if marker.exists() else ''}: {text[-300:]!r}")
        marker.unlink(missing_ok=True)


def member(name, data=b"x", **fields):
    header = tarfile.TarInfo(name)
    header.size = len(data)
    for field, value in fields.items():
        setattr(header, field, value)
    return header, data


def archives(marker):
    """{name: members that are put before those of a good snapshot}."""
    link = {"type": tarfile.SYMTYPE, "size": 0}
    climbing = "../" * 12 + str(marker).lstrip("/")
    return {
        "a name that climbs": [member(climbing)],
        "an absolute name": [member(str(marker))],
        "a link out, and a file through it": [
            member("out", b"", **link, linkname=str(marker.parent)), member(f"out/{marker.name}")
        ],
        "a hard link": [member("card.json", b"", type=tarfile.LNKTYPE, size=0, linkname="/etc/passwd")],
        "a device": [member("shard", b"", type=tarfile.CHRTYPE, size=0, devmajor=1, devminor=5)],
        "a pipe": [member("card.json", b"", type=tarfile.FIFOTYPE, size=0)],
        "a folder in place of a file": [member("card.json", b"", type=tarfile.DIRTYPE, size=0)],
        "a name of 4,000 folders": [member("a/" * 4000 + "b")],
        "a name with a line break": [member("card.json\n")],
        "a card of another kind": [member("card.json", b"[" * 100_000)],
        "ten thousand members": [member(f"m{i}") for i in range(10_000)],
        "a long header": [member("x", pax_headers={"comment": "9" * 10_000_000})],
        "a strange header": [member("x", pax_headers={"size": "-1", "path": "card.json"})],
    }  # fmt: skip


def hostile_snapshots(rng, folder, rounds):
    """Each of the archives in turn, restored into an empty store."""
    place, tally = Place(folder), Tally()
    marker = folder / "marker"
    with place.workers:
        (snapshot,) = (place.base() / "store" / "wiki" / "snapshots").glob("*.tar.gz")
        bad = folder / snapshot.name
        restored = folder / "restored"

        def restore():
            shutil.rmtree(restored, ignore_errors=True)
            code, text = said(place, "snapshot", "restore", "wiki", bad, "--path", restored)
            return code, str(sorted(points_of(restored, "wiki").items())) if code == 0 else text

        shutil.copy(snapshot, bad)
        good, made = restore(), archives(marker)
        made |= dict.fromkeys(("all zeros", "a bomb", "empty", "a folder", "a pipe alone"))
        for name in rng.sample(sorted(made), k=min(rounds, len(made))):
            bad.unlink()
            if name == "all zeros":
                bad.write_bytes(gzip.compress(bytes(50_000_000)))
            elif name == "a bomb":
                bad.write_bytes(gzip.compress(bytes(200_000_000)) * 20)
            elif name == "empty":
                bad.touch()
            elif name == "a folder":
                bad.mkdir()
            elif name == "a pipe alone":
                os.mkfifo(bad)
            else:
                with tarfile.open(bad, "w:gz") as out, tarfile.open(snapshot) as source:
                    for header, data in made[name]:
                        out.addfile(header, io.BytesIO(data))
                    for header in source:
                        out.addfile(header, source.extractfile(header) if header.isfile() else None)
            judge(tally, name, restore(), good, marker)
            shutil.rmtree(bad) if bad.is_dir() else None
            bad.touch()
    return tally


def dripping(rng, folder, rounds):
    """Clients of an endpoint and of a Qdrant server; a byte of the answer comes each quarter of a second."""
    from xqg_vdb.errors import XqgError
    from xqg_vdb.models.remote import Server
    from xqg_vdb.store.server.store import ServerStore

    tally = Tally()
    for number in range(rounds):
        whole = rng.random() < 0.5  # the head at once, and the body in drips
        with socket.create_server(("127.0.0.1", 0)) as listening:
            threading.Thread(target=drip, args=(listening, whole), daemon=True).start()
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            try:
                if number % 2:
                    server = Server(f"{url}/v1", model="m", keys=("XQG_NO_KEY",), timeout=0.5, patience=0.5)
                    server.post("/chat/completions", dict, adapted=lambda body, response: False)
                else:
                    with ServerStore.connect(url, timeout=1, deadline=0.5) as store:
                        store.names()
                tally.bad.append("an answer came")
            except XqgError as error:
                tally.note("given up")
                tally.hit += "ReadTimeout" in str(error)
            tally.tried += 1
    return tally


def drip(listening, whole):
    with suppress(OSError):
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=drips, args=(connection, whole), daemon=True).start()


def drips(connection, whole):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4000\r\n\r\n"
    with suppress(OSError), connection:
        connection.recv(65536)
        if whole:
            connection.sendall(head)
        for byte in b" " * 4000 if whole else head:
            connection.sendall(bytes([byte]))
            time.sleep(0.25)


CANARY = "sk-Canary7Qx2ZpLm9RtVb4NwKd8"
KEYS = ("XQG_VDB_API_KEY", "XQG_VDB_GENERATOR_KEY", "XQG_VDB_ENCODER_KEY", "OPENAI_API_KEY", "HF_TOKEN")


class Parrot(BaseHTTPRequestHandler):
    """Says the key that it was given, in one way or another."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        rng, key = self.server.rng, self.headers.get("api-key") or self.headers.get("Authorization") or CANARY
        cut = [key, key[: rng.randint(12, len(key))], key[rng.randint(1, 8) :], " ".join([key] * 9), "x" * 280 + key]
        told = rng.choice(cut)
        body = rng.choice([
            {"error": {"message": f"Incorrect API key provided: {told}."}}, {"status": {"error": told}},
            {"detail": [{"loc": ["header", told], "msg": told}]}, told,
            {"choices": [{"message": {"content": None}, "error": told}]}, {"choices": [{"message": {"content": told}}]},
        ])  # fmt: skip
        data, status = json.dumps(body).encode(), rng.choice([200, 302, 400, 401, 403, 404, 409, 422, 501])
        self.send_response(status, told if rng.random() < 0.2 else None)
        self.send_header("Location", f"http://127.0.0.1:9/{told.replace(' ', '')}")
        self.send_header("X-Key", told)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    def log_message(self, *args):
        pass


def pieces(text):
    """Whether eight characters of the key on end are in a text."""
    return any(CANARY[at : at + 8] in text for at in range(len(CANARY) - 7))


def parroting(rng, folder, rounds):
    """Commands with a key in the environment; afterwards it is in no file and in nothing that was said."""
    place, tally = Place(folder), Tally()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Parrot)
    httpd.rng = rng
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    url = f"http://127.0.0.1:{httpd.server_port}"
    with place.workers:
        at = place.base()
        here, encoder = place.folder, ["--encoder", place.folder / "model", "--threads", 1]
        ask = ["search", "wiki", "w1 w2", "--path", at / "store", *encoder]
        commands = [
            ["list", "--url", url], ["versions", "wiki", "--url", url], ["verify", "wiki", "--url", url],
            ["load", here / "corpus.jsonl", "new", *encoder, "--url", url], ["delete", "wiki", "p1", "--url", url],
            ["search", "wiki", "w1", *encoder, "--url", url], ["snapshot", "create", "wiki", "--url", url],
            ["generate", here / "corpus.jsonl", at / "q.jsonl", "--endpoint", f"{url}/v1", "-l", "sw", "-n", 1],
            [*ask, "--expand", f"pseudo-document:{url}/v1"],
            [*ask, "--expand", f"translation:{url}/v1", "--expand-lang", "sw"],
            ["export", f"{url}/v1", at / "remote"], ["migrate", "wiki", "--path", at / "store", "--to-url", url],
            ["list", "--url", url, "--verbose"],
        ]  # fmt: skip
        for number in range(rounds):
            argv = commands[number % len(commands)]
            code, text = said(place, *argv, env=dict.fromkeys(KEYS, CANARY))
            tally.tried += 1
            tally.hit += code != 0
            tally.note(f"ended {code}")
            files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 1 << 22]
            hits = [path.name for path in files if pieces(path.read_text(errors="replace"))]
            if pieces(text) or hits or (code not in (0, 2) and "Traceback" in text):
                tally.bad.append(f"{argv[0]} ended {code}, in {hits}: {text[-500:]!r}")
    httpd.shutdown()
    httpd.server_close()
    return tally


ATTACKS = {
    "a model folder made to hurt": (6, hostile_models),
    "a snapshot made to hurt": (6, hostile_snapshots),
    "a server that drips": (6, dripping),
    "a server that repeats the key": (6, parroting),
}
