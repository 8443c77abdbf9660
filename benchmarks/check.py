"""Compare today's ratios with recorded ones of the same class of CPU, to see what has become slower.

    python benchmarks/check.py [--write] [--points 5000] [--repeats 3]

Ratios of runs side by side (ours divided by the raw engine) depend less on the machine and its load than seconds do, so
they are what is recorded, in benchmarks/ratios.json, by what the CPU can do. A ratio that is lower than the recorded
one by more than the tolerance fails (exit 1). `--write` records those of this machine instead.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
RECORDED = HERE / "ratios.json"
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
TOLERANCE = 0.35
"""Of a ratio: what one run may differ from another on a busy machine."""


def cpu_class() -> str:
    """What decides how fast a model runs, such as `avx2 avx512f avx512_vnni`."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return " ".join(name for name in FEATURES if name in flags) or "plain"


def measured(points: int, repeats: int) -> dict[str, float]:
    """The ratios of benchmarks/store.py."""
    argv = [sys.executable, str(HERE / "store.py"), "--points", str(points), "--repeats", str(repeats), "--json"]
    done = subprocess.run([*argv, "--questions", "200"], capture_output=True, text=True, check=True)
    records = [record for record in json.loads(done.stdout)["results"] if record["what"] != "ours"]
    return {
        f"{record['group']}, {record['what']}: {kind}": record[f"{kind}_ratio"]
        for record in records
        for kind in ("upsert", "query")
    }


def compared(found: dict[str, float], known: dict[str, float]) -> list[str]:
    """The names of ratios that fell by more than the tolerance; prints a line for each."""
    slower = []
    for name, ratio in found.items():
        before = known.get(name)
        fell = before is not None and ratio < before * (1 - TOLERANCE)
        slower += [name] if fell else []
        told = "not recorded" if before is None else f"recorded {before:.2f}{'  SLOWER' if fell else ''}"
        print(f"{name:44}{ratio:6.2f}   {told}")
    return slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record instead of comparing")
    parser.add_argument("--points", type=int, default=5_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    kind = cpu_class()
    found = measured(arguments.points, arguments.repeats)
    slower = compared(found, recorded.get(kind, {}).get("ratios", {}))
    if arguments.write:
        packages = {name: version(name) for name in ("qdrant-edge-py", "qdrant-client", "numpy")}
        recorded[kind] = {"ratios": found, "points": arguments.points, "versions": packages}
        RECORDED.write_text(json.dumps(recorded, indent=2) + "\n")
    elif kind not in recorded:
        print(f"No ratios are recorded for a CPU with {kind}: record them with --write.")
    elif slower:
        sys.exit(f"{len(slower)} of {len(found)} ratios fell by more than {TOLERANCE:.0%}: {'; '.join(slower)}")


if __name__ == "__main__":
    main()
