"""Qdrant servers as processes of this machine, alone or as a cluster; XQG_TEST_QDRANT_COMMAND says how to start one.

The command takes its settings from QDRANT__… variables and the arguments `--uri` and `--bootstrap`, as the server's own
program does. Everything lies in the folder that is given; ports are free ones of the loopback.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import time

import httpx
import processes

COMMAND = os.environ.get("XQG_TEST_QDRANT_COMMAND")
NO_COMMAND = "XQG_TEST_QDRANT_COMMAND says no way to start a Qdrant server"
READY_WITHIN = 60.0


def free_ports(n):
    """n ports that nobody uses, one after the other."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for port in range(first + 1, first + n):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
        return range(first, first + n)


class Node:
    """One server; `settings` are variables without their QDRANT__, such as SERVICE__API_KEY."""

    def __init__(self, folder, *, settings=None, bootstrap=None, cluster=False, scheme="http"):
        self.port, self.grpc_port, self.peer_port = free_ports(3)
        self.folder, self.scheme, self.process = folder, scheme, None
        self.url, self.peer = f"{scheme}://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.peer_port}"
        self.argv = [*shlex.split(COMMAND), "--disable-telemetry"]
        if cluster:
            self.argv += ["--uri", self.peer, *(["--bootstrap", bootstrap] if bootstrap else [])]
        own = {
            "SERVICE__HOST": "127.0.0.1", "SERVICE__HTTP_PORT": self.port, "SERVICE__GRPC_PORT": self.grpc_port,
            "STORAGE__STORAGE_PATH": folder / "storage", "STORAGE__SNAPSHOTS_PATH": folder / "snapshots",
            "TELEMETRY_DISABLED": "true", "LOG_LEVEL": "WARN", "CLUSTER__ENABLED": str(cluster).lower(),
            "CLUSTER__P2P__PORT": self.peer_port, **(settings or {}),
        }  # fmt: skip
        self.env = {**os.environ, **{f"QDRANT__{name}": str(value) for name, value in own.items()}}

    def start(self):
        """Begin, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log", "ab") as log:
            self.process = processes.start(self.argv, env=self.env, cwd=self.folder, stdout=log, stderr=log)
        end = time.monotonic() + READY_WITHIN
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", verify=False, timeout=5.0).status_code == httpx.codes.OK:
                    return self
            time.sleep(0.05)
        raise AssertionError(f"the server did not start: {(self.folder / 'log').read_text()[-800:]}")

    def kill(self):
        """SIGKILL, as by the kernel."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """SIGTERM, and wait for the end."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()


@contextlib.contextmanager
def running(folder, nodes=1, **options):
    """So many servers that are one cluster, or one alone."""
    started = []
    try:
        for number in range(nodes):
            first = started[0].peer if started else None
            node = Node(folder / f"node{number}", cluster=nodes > 1, bootstrap=first, **options)
            started.append(node)
            node.start()
        if nodes > 1:
            _agree(started)
        yield started
    finally:
        for node in started:
            if node.process is not None:
                processes.end(node.process)


def _agree(nodes):
    """Wait until every node knows all of them."""
    end = time.monotonic() + READY_WITHIN
    while time.monotonic() < end:
        known = [len(httpx.get(f"{node.url}/cluster").json()["result"]["peers"]) for node in nodes]
        if known == [len(nodes)] * len(nodes):
            return
        time.sleep(0.1)
    raise AssertionError("the nodes do not find each other")
