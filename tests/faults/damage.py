"""A byte changed, a file cut or emptied, in every file of ours: an error that says so, or the very same answers.

What the engine keeps of its own has no checksum that is looked at when a collection opens: such damage is found by
`verify` at the latest (that is the promise), and a search may until then give other hits.
"""

import json
import shutil
import signal

import killing
from kills import Place, points_of
from tally import Tally

QUESTIONS = ("w1 w2 w3", "w9 w17", "w30 w4 w12 w8")


def damage(rng, path):
    """Change a file in one of four ways; what was done in words."""
    content = bytearray(path.read_bytes())
    if not content:
        path.write_bytes(b"\0")
        return "one byte put into it"
    used = [place for place, byte in enumerate(content) if byte] if rng.random() < 0.8 else []  # engine files: zeros
    at, way = rng.choice(used) if used else rng.randrange(len(content)), rng.randrange(4)
    if way == 0:
        content[at] ^= 1 << rng.randrange(8)
    elif way == 1:
        content[at : at + 64] = rng.randbytes(len(content[at : at + 64]))
    elif way == 2:
        del content[at:]
    else:
        content = bytearray(len(content)) if rng.random() < 0.5 else bytearray()
    path.write_bytes(content)
    return ("a bit flipped", "64 bytes overwritten", "cut", "zeroed or emptied")[way] + f" at {at}"


def files_of(folder):
    """Files a round may damage, small and large alike; locks hold nothing."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(path for path in found if path.suffix != ".lock" and path.name.lower() != "lock")


def answers(place, at, model):
    """(exit code, what is said) of a search, and of `verify`."""
    question = QUESTIONS[0]
    search = ["search", "wiki", question, "--path", at / "store", "--encoder", model, "--threads", 1, "--json"]
    return [said(place, argv) for argv in (search, ["verify", "wiki", "--path", at / "store"])]


def said(place, argv):
    """The exit code and output of one command in a process of its own."""
    log = place.folder / "one-said"
    log.unlink(missing_ok=True)
    place.workers.said = log
    code = place.workers.run(*argv)
    return code, log.read_text(errors="replace")


def judge(tally, where, before, after, *, late=False):
    """Count one round. `late`: a search may give other hits when `verify` finds the damage."""
    assert not any(code for code, _ in before), before
    tally.tried += 1
    for (_, text), (code, now) in zip(before, after, strict=True):
        if code < 0 or "Traceback" in now:
            tally.bad.append(f"{where}: ended {code}: {now[-300:]}")
            return
        if code == 0 and now != text and not (late and after[-1][0] == 8):
            tally.bad.append(f"{where}: another result, and no error: {now[:200]!r}")
            return
    codes = [code for code, _ in after]
    tally.hit += any(codes)
    tally.note("said at once" if codes[0] else "said by verify" if any(codes) else "the same answers")


SWEPT = 64 << 10


def each_byte(rng, folder, rounds):
    """Every byte of our own small files flipped, and the file cut there; `rounds` of each file, evenly, if fewer.

    In one process: what `info` and a search read is opened anew each time, and compared with what it was.
    """
    from xqg_vdb.errors import XqgError
    from xqg_vdb.models.encoder import Encoder
    from xqg_vdb.store import open_store

    place, tally = Place(folder), Tally()
    with place.workers:
        base = place.base()
    model = shutil.copytree(place.folder / "model", folder / "swept-model")
    store = shutil.copytree(base / "store", folder / "swept-store")
    live = store / "wiki" / json.loads((store / "wiki" / "CURRENT").read_text())["version"]

    def collection():
        with open_store(store) as opened:
            return str(opened.card("wiki")), opened.count("wiki"), opened.version("wiki")

    def encoder():
        with Encoder(model, threads=1) as opened:
            return str(opened.facts), opened.encode_queries(list(QUESTIONS)).tobytes()

    ours = [(store / "wiki" / "CURRENT", collection), *((path, collection) for path in live.glob("*.json"))]
    for path, read in [*ours, *((path, encoder) for path in files_of(model))]:
        content, wanted = path.read_bytes(), read()
        if len(content) > SWEPT:
            continue
        for at in range(0, len(content), max(1, len(content) // rounds)):
            flipped = bytearray(content)
            flipped[at] ^= 1 << rng.randrange(8)
            for way, damaged in (("flipped", bytes(flipped)), ("cut", content[:at])):
                path.write_bytes(damaged)
                tally.tried += 1
                try:
                    same = read() == wanted
                except XqgError:
                    tally.hit += 1
                    tally.note("said at once")
                except BaseException as error:  # the engine's panics, too
                    tally.bad.append(f"{path.name} {way} at {at}: {type(error).__name__}: {error}"[:300])
                else:
                    tally.note("the same answers")
                    tally.bad += [] if same else [f"{path.name} {way} at {at}: another result, and no error"]
        path.write_bytes(content)
        assert read() == wanted
    return tally


def store_damaged(rng, folder, rounds):
    place, tally = Place(folder), Tally()
    with place.workers:
        before = answers(place, place.base(), place.folder / "model")
        for number in range(rounds):
            at = place.round(f"round-{number}")
            live = at / "store" / "wiki" / json.loads((at / "store" / "wiki" / "CURRENT").read_text())["version"]
            candidates = [at / "store" / "wiki" / "CURRENT", *files_of(live)]
            path = rng.choice(candidates)
            done = damage(rng, path)
            where = f"{path.relative_to(at)} {done}"
            judge(tally, where, before, answers(place, at, place.folder / "model"), late="shard" in path.parts)
            shutil.rmtree(at)
    return tally


def model_damaged(rng, folder, rounds):
    place, tally = Place(folder), Tally()
    with place.workers:
        before = answers(place, place.base(), place.folder / "model")
        for number in range(rounds):
            model = place.folder / f"model-{number}"
            shutil.copytree(place.folder / "model", model)
            path = rng.choice(files_of(model))
            done = damage(rng, path)
            judge(tally, f"model/{path.name} {done}", before, answers(place, place.base(), model))
            shutil.rmtree(model)
    return tally


def snapshot_damaged(rng, folder, rounds):
    place, tally = Place(folder), Tally()
    with place.workers:
        (snapshot,) = (place.base() / "store" / "wiki" / "snapshots").glob("*.tar.gz")
        restored = folder / "restored"

        def restore():
            shutil.rmtree(restored, ignore_errors=True)
            code, text = said(place, ["snapshot", "restore", "wiki", broken, "--path", restored])
            content = str(hash(tuple(sorted(points_of(restored, "wiki").items())))) if code == 0 else text
            return [(code, content)]

        broken = folder / snapshot.name
        shutil.copy(snapshot, broken)
        before = restore()
        assert before[0][0] == 0, before
        for _ in range(rounds):
            shutil.copy(snapshot, broken)
            judge(tally, f"snapshot {damage(rng, broken)}", before, restore())
    return tally


def build_damaged(rng, folder, rounds):
    """A load killed when its vectors were encoded and nothing was written; a window is damaged; it goes on."""
    place, tally = Place(folder), Tally()
    with place.workers:
        base = place.base()
        env = {"XQG_VDB_CACHE": str(base / "cache")}
        point = "os.rename */store/new/v*/cursor.json 1"
        code = place.workers.run(*place.command("load", base), env={**env, **killing.at(point)})
        assert code == -signal.SIGKILL, (code, place.said())
        at = place.round("unbroken")
        assert place.run("load", at) == 0, place.said()
        wanted = [(0, json.dumps(sorted(map(str, points_of(at / "store", "new").items()))))]
        for number in range(rounds):
            at = place.round(f"round-{number}")
            path = rng.choice(files_of(at / "cache" / "builds"))
            done = damage(rng, path)
            place.workers.said = place.folder / f"said-{number}"
            code = place.run("load", at)
            text = place.workers.said.read_text()
            content = json.dumps(sorted(map(str, points_of(at / "store", "new").items()))) if code == 0 else text
            judge(tally, f"build/{path.name} {done}", wanted, [(code, content)])
            shutil.rmtree(at)
    return tally


ATTACKS = {
    "every byte of a small file flipped, and cut there": (5, each_byte),
    "damage to a published collection": (5, store_damaged),
    "damage to a model folder": (5, model_damaged),
    "damage to a snapshot": (5, snapshot_damaged),
    "damage to a build": (5, build_damaged),
}
