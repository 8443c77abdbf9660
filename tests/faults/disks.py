"""A disk that fills up: a sentence and exit code 6, and once there is room the same command ends exactly.

Small file systems in memory (`mount -t tmpfs`, as root on Linux), and a full disk or a failing one at the n-th write
of the process in turn (`strace`, which makes the kernel refuse it). Without either the rounds are not run.
"""

import re
import shutil
import subprocess
from contextlib import contextmanager

from cli_cases import command, environment
from kills import Place, state
from tally import Tally

WRITES = "write,pwrite64,writev,fsync,fdatasync,ftruncate,fallocate"
SENTENCES = {
    "ENOSPC": {6, 8},  # 8: the engine's own files, of which it only says that they cannot be used
    "EIO": {6, 8},
}


@contextmanager
def small_disk(folder, megabytes):
    """A file system of so many MiB, in whole KiB, at `folder`; yields what makes it larger."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "tmpfs", folder], check=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={int(size * 1024)}k", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def may_mount(folder):
    """Whether this process may mount anything."""
    try:
        with small_disk(folder / "probe", 1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def small_disks(name):
    """The attack on one command: its store, builds and outputs lie on a disk of random size."""

    def attack(rng, folder, rounds):
        place, tally = Place(folder), Tally()
        if not may_mount(folder):
            tally.note("not run: needs root")
            return tally
        with place.workers:
            at = place.round("unbroken")
            assert place.run(name, at) == 0, place.said()
            wanted = state(name, at)
            for number in range(rounds):
                size = rng.randint(1, 120) if name != "snapshot create" else rng.uniform(0.01, 0.5)  # it is small
                with small_disk(folder / f"disk-{number}", size) as enlarge:
                    enlarge(2000)
                    subprocess.run(
                        ["cp", "-a", "--sparse=always", f"{place.base()}/.", folder / f"disk-{number}"], check=True
                    )
                    at = folder / f"disk-{number}"
                    used = int(
                        subprocess.run(["du", "-sm", at], capture_output=True, text=True, check=True).stdout.split()[0]
                    )
                    enlarge(used + size)
                    place.workers.said = folder / f"said-{number}"
                    code, said = place.run(name, at), place.workers.said.read_text()
                    tally.tried += 1
                    tally.hit += code != 0
                    where = f"{size:.2f} MiB free"
                    if code not in (0, 6) or "Traceback" in said:
                        tally.bad.append(f"{where}: ended {code}: {said[-300:]}")
                    enlarge(2000)
                    if (again := place.run(name, at)) != 0:
                        tally.bad.append(
                            f"{where}: with room again, ended {again}: {place.workers.said.read_text()[-300:]}"
                        )
                    elif state(name, at) != wanted:
                        tally.bad.append(f"{where}: the result differs")
        return tally

    return attack


def failing_writes(rng, folder, rounds):
    """`load`, whose n-th write fails; n grows from round to round until nothing fails any more, then at random."""
    place, tally = Place(folder), Tally()
    if shutil.which("strace") is None:
        tally.note("not run: needs strace")
        return tally
    with place.workers:
        at = place.round("unbroken")
        assert place.run("load", at) == 0, place.said()
        wanted, last = state("load", at), 0
        for number in range(rounds):
            at = place.round(f"round-{number}")
            error = rng.choice(sorted(SENTENCES))
            nth = number + 1 if not last else rng.randint(1, last)
            code, said, failed = strace(place, at, error, nth)
            last = last or (nth if not failed else 0)
            tally.tried += 1
            tally.hit += failed
            where = f"{error} at write {nth}"
            if code not in {0} | SENTENCES[error] or "Traceback" in said:
                tally.bad.append(f"{where}: ended {code}: {said[-400:]}")
            if (again := place.run("load", at)) != 0:
                tally.bad.append(f"{where}: then ended {again}: {place.said()[-300:]}")
            elif state("load", at) != wanted:
                tally.bad.append(f"{where}: the result differs")
            shutil.rmtree(at)
    return tally


def strace(place, at, error, nth):
    """(exit code, what was said, whether a write was refused) of a load whose n-th write below `at` fails."""
    log = at / "strace"
    env = environment(at) | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    argv = command(*map(str, place.command("load", at)))
    trace = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", log, "-e", f"trace={WRITES}"]
    inject = ["-e", f"inject={WRITES}:error={error}:when={nth}"]
    done = subprocess.run([*trace, *inject, *argv], env=env, cwd=at, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr, bool(re.search(r"INJECTED", log.read_text(errors="replace")))


ATTACKS = {f"full disk under {name}": (6, small_disks(name)) for name in ("load", "add", "snapshot create", "migrate")}
ATTACKS |= {"a write that fails, each in turn": (6, failing_writes)}
