"""Child processes that do not outlive the test that started them, whatever becomes of it."""

import subprocess

_started = []


def start(argv, **options):
    """`subprocess.Popen(argv, **options)`, ended with the test if it is alive then (a hook in conftest.py)."""
    process = subprocess.Popen(argv, **options)
    _started.append(process)
    return process


def end(process):
    """Kill it if it is alive, close its pipes, wait for it."""
    process.kill()
    with process:
        pass


def end_all():
    """End everything that was started and has not been ended by this."""
    while _started:
        end(_started.pop())
