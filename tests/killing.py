"""End a process at a named point of its work, the same on every machine.

A point is `EVENT PATTERN N`: the N-th time that the process is about to do something to a path like PATTERN. EVENT is
one of Python's audit events, such as `os.rename` (whose path is the new one), `os.remove`, `shutil.rmtree`, `open` (for
writing) or `subprocess.Popen`; or `call`, and then PATTERN is the qualified name of a function that is about to run,
ours or a compiled one, such as `EdgeShard.flush`. The package knows nothing of this: a child that a test starts calls
`arm` first, or runs `ARM`, and that reads the point from its environment.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

import processes

ARM = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import killing; killing.arm()"
"""What a child runs before, or amid, its work."""
_PATH_OF = {  # event: which of its arguments is the path
    "open": 0, "os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.truncate": 0, "shutil.rmtree": 0,
    "subprocess.Popen": 0,
}  # fmt: skip
_IN_POINTS = {"os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
_WRITING = os.O_WRONLY | os.O_RDWR
_VARYING = re.compile(r"[0-9a-f]{8,}|\d+")


def at(point, how=signal.SIGKILL):
    """Environment of a child that gets the signal `how` at a point."""
    return {"END_AT": point, "END_BY": str(int(how))}


def traced(file):
    """Environment of a child that writes down what it passes, for `points`."""
    return {"TRACE_TO": str(file)}


def arm():
    """In the child: from here on, count and obey."""
    if "TRACE_TO" in os.environ:
        _trace(os.environ["TRACE_TO"])
    if "END_AT" in os.environ:
        _obey(os.environ["END_AT"], int(os.environ["END_BY"]))


def points(file, root):
    """The first and the last time that anything below `root` was renamed or removed, in order.

    What differs from run to run, and numbers, are a `*`; files inside an engine's folder, or a bin, are all alike.
    """
    lines = [line.partition(" ")[::2] for line in Path(file).read_text().splitlines()]
    found = {}
    for event, path in lines:
        if event in _IN_POINTS and path.startswith(f"{root}/"):
            name = re.sub(r"(/shard|/\.trash[^/]*)/.*", r"\1/*", path.removeprefix(str(root)))
            found["{} *{}".format(event, re.sub(r"\*+", "*", _VARYING.sub("*", name)))] = None
    numbers = {name: sum(_like(event, path, *name.split(" ", 1)) for event, path in lines) for name in found}
    return [f"{name} {number}" for name, last in numbers.items() for number in sorted({1, last})]


def _like(event, path, wanted, pattern):
    return event == wanted and fnmatchcase(path, pattern)


def _done_to(event, args):
    """The path that an event is about, None when nobody asks."""
    if event not in _PATH_OF or (event == "open" and not (args[2] or 0) & _WRITING):
        return None
    path = args[_PATH_OF[event]]
    return os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else None


def _trace(file):
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event, args):
        path = _done_to(event, args)
        if path is not None:
            os.write(handle, f"{event} {path}\n".encode())

    sys.addaudithook(hook)


def _obey(point, how):
    name, _, number = point.rpartition(" ")
    wanted, _, pattern = name.partition(" ")
    passed = itertools.count(1)  # its `next` is one step, also among threads

    def end():
        if next(passed) == int(number):
            os.kill(os.getpid(), how)

    def hook(event, args):
        if event == wanted and (path := _done_to(event, args)) is not None and fnmatchcase(path, pattern):
            end()

    def profile(frame, event, function):
        called = frame.f_code.co_qualname if event == "call" else ""
        with suppress(Exception):  # what is called may be any object, which answers as it likes
            called = called or getattr(function, "__qualname__", "")
        if event in ("call", "c_call") and called == pattern:
            end()

    if wanted == "call":
        threading.setprofile(profile)
        sys.setprofile(profile)
    else:
        sys.addaudithook(hook)


_FORKING = """
import ctypes, json, os, signal, sys, traceback
import killing
{code}
prctl, end_with_parent, adopt_orphans = ctypes.CDLL(None).prctl, 1, 36  # PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER
prctl(adopt_orphans, 1)
for line in sys.stdin:
    request = json.loads(line)
    worker = os.fork()  # a fresh process each time, without paying for the imports again
    if worker == 0:
        prctl(end_with_parent, signal.SIGKILL)
        # a test run started in the background ignores Ctrl-C, and its children would inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
        said = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1), os.dup2(said, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(request["env"])
        killing.arm()
        code = 1
        try:
            work(*request["arguments"])
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(worker, flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    try:
        while True:
            os.wait()  # its own children end with it, but a little later
    except ChildProcessError:
        print(code, flush=True)
"""


class Workers:
    """Processes that run the function `work` of some code, one after the other, each from a fresh start.

    They are forked from one that has run the code, so that it may import what it likes, but must start no thread. What
    they say is added to the file `said`. The end of a test ends that one; it comes back when it is needed again.
    """

    def __init__(self, code, said, env=None):
        paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
        self.argv = [sys.executable, "-c", _FORKING.replace("{code}", code)]
        self.env = {**(os.environ if env is None else env), "PYTHONPATH": paths}
        self.said, self.server = said, None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.server is not None:
            processes.end(self.server)

    def start(self, *arguments, env=None):
        """The process id of a new worker."""
        if self.server is None or self.server.poll() is not None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.server = processes.start(self.argv, env=self.env, **pipes)
        request = {"arguments": [str(one) for one in arguments], "env": env or {}, "said": str(self.said)}
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def wait(self):
        """Its exit code, or the negative number of the signal that ended it."""
        return int(self.server.stdout.readline())

    def run(self, *arguments, env=None):
        """Start it and wait for it."""
        self.start(*arguments, env=env)
        return self.wait()
