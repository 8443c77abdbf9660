"""The fault rig: `python tests/faults/rig.py --rounds 100` tries to break each promise of docs/reliability.md.

Prints a row for each attack and, with --write, puts the table into the page. Every attack begins from the seed and its
own name, so that one alone repeats what it did in the whole. Exit code 1 when anything went wrong.
"""

import argparse
import datetime
import logging
import random
import re
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
MODULES = ("kills", "making", "damage", "disks", "inputs", "schedules", "servers", "strangers", "powercuts")
BEGIN, END = "<!-- rig: begin -->\n", "<!-- rig: end -->\n"
"""Of the table; one of some attacks alone, such as those that need a server, stands between marks of its own."""


def attacks():
    """{name: (number of the promise, function of a generator, a folder and how many rounds)}."""
    return {name: attack for module in MODULES for name, attack in import_module(module).ATTACKS.items()}


def carry_out(name, *, rounds, seed):
    """The tally of one attack, and its seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="xqg-faults-") as folder:
        tally = attacks()[name][1](random.Random(f"{seed} {name}"), Path(folder) / "place", rounds)
    return tally, time.monotonic() - began


def row(name, tally, took):
    """A line of the page's table."""
    outcomes = ", ".join(
        text if text.startswith("not run") or " × " in text else f"{count:,} {text}"
        for text, count in sorted(tally.outcomes.items(), key=lambda item: -item[1])
    )
    cells = (attacks()[name][0], name, f"{tally.tried:,}", f"{tally.hit:,}", len(tally.bad), outcomes, f"{took:.0f} s")
    return f"| {' | '.join(map(str, cells))} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=100, help="of each attack (of mutated inputs, files of 2,000 lines)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="attacks whose name has this in it")
    parser.add_argument("--write", action="store_true", help=f"the table into {PAGE.name}")
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # what a server's faults make the client say
    rows, bad = [], 0
    for name in attacks():
        if given.only in name:
            tally, took = carry_out(name, rounds=given.rounds, seed=given.seed)
            rows.append(row(name, tally, took))
            bad += len(tally.bad)
            print(rows[-1], *tally.bad, sep="\n  ", flush=True)
    if given.write:
        part, only = (f" {given.only}", f' --only "{given.only}"') if given.only else ("", "")
        begin, end = BEGIN.replace(":", f"{part}:"), END.replace(":", f"{part}:")
        head = (
            f"{datetime.date.today():%Y-%m-%d}, seed {given.seed}, `python tests/faults/rig.py{only} --rounds"
            f" {given.rounds} --seed {given.seed} --write`:\n\n"
            "| promise | attack | rounds | met the fault | went wrong | outcomes | took |\n"
            "| --- | --- | --: | --: | --: | --- | --: |\n"
        )
        text = PAGE.read_text("utf-8")
        table = begin + head + "\n".join(rows) + "\n" + end
        PAGE.write_text(re.sub(f"{begin}.*{end}", lambda _: table, text, flags=re.DOTALL), "utf-8")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
