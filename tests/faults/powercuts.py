"""A power cut: what the kernel had not yet written is gone, what a command reported is there.

The store lies on a file system in a file (`mount -o loop`, as root on Linux). At a random moment the command is stopped
(SIGSTOP), that file is copied as the disk has it, without a sync, and the copy is mounted: so a disk would be found
after the cut. Then the same command again ends as one that was never cut.
"""

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress

from kills import Place, between, copy, state
from tally import Tally

SIZE = "1G"


def run(*argv):
    subprocess.run([str(part) for part in argv], check=True, capture_output=True)


@contextmanager
def disk(image, folder):
    """What is in the image, at `folder`."""
    folder.mkdir(exist_ok=True)
    run("mount", "-o", "loop", image, folder)
    try:
        yield folder
    finally:
        run("umount", "-l", folder)


def possible(folder):
    """Whether this process may mount a file."""
    try:
        run("truncate", "-s", "8M", folder / "probe")
        run("mkfs.ext4", "-q", folder / "probe")
        with disk(folder / "probe", folder / "probed"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def cut(name):
    """The attack on one command."""

    def attack(rng, folder, rounds):
        place, tally = Place(folder), Tally()
        if not possible(folder):
            tally.note("not run: needs root")
            return tally
        image, after_cut = folder / "image", folder / "image-after"
        with place.workers:
            at = place.round("unbroken")
            before, began = state(name, at), time.monotonic()
            assert place.run(name, at) == 0, place.said()
            took, after = time.monotonic() - began, state(name, at)
            for _ in range(rounds):
                run("truncate", "-s", SIZE, image)
                run("mkfs.ext4", "-q", "-F", image)
                with disk(image, folder / "disk") as mounted:
                    copy(place.base(), mounted / "at")
                    run("sync", "-f", mounted)
                    delay = rng.uniform(0, 1.2 * took)
                    at = mounted / "at"
                    worker = place.workers.start(*place.command(name, at), env={"XQG_VDB_CACHE": str(at / "cache")})
                    time.sleep(delay)
                    with suppress(ProcessLookupError):
                        os.kill(worker, signal.SIGSTOP)
                    shutil.rmtree(after_cut, ignore_errors=True)
                    run("cp", "--sparse=always", image, after_cut)
                    with suppress(ProcessLookupError):
                        os.kill(worker, signal.SIGKILL)
                    done = place.workers.wait() == 0
                tally.tried += 1
                tally.hit += not done
                with disk(after_cut, folder / "disk") as mounted:
                    at, where = mounted / "at", f"cut after {delay:.3f} s of {took:.3f}"
                    seen = state(name, at)
                    if done and seen != after:
                        tally.bad.append(f"{where}: it had ended, and is not there")
                    elif not between(name, seen, before, after):
                        tally.bad.append(f"{where}: a reader saw something else")
                    if (code := place.run(name, at)) != 0:
                        tally.bad.append(f"{where}: the same command ended {code}: {place.said()[-300:]}")
                    elif state(name, at) != after:
                        tally.bad.append(f"{where}: the result differs")
                image.unlink()
                after_cut.unlink()
        return tally

    return attack


COMMANDS = ("load", "load again", "add", "delete", "write-queries")
ATTACKS = {f"power cut under {name}": (1, cut(name)) for name in COMMANDS}
