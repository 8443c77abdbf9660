"""Each attack of the rig with two rounds, so that the rig itself is known to run; `make faults` does the many.

Not those on `export` and `train`, half a minute each: test_export and test_training_resume end these at named points.
"""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import making
import rig


@pytest.mark.parametrize("name", [name for name in rig.attacks() if name not in making.ATTACKS])
def test_nothing_goes_wrong(name, tmp_path):
    number, attack = rig.attacks()[name]
    tally = attack(random.Random(7), tmp_path / "place", 2)
    assert tally.bad == [] and number in range(1, 9)
    assert tally.tried >= 2 or any(outcome.startswith("not run") for outcome in tally.outcomes)


def test_a_promise_of_the_page_stands_behind_each_attack():
    text = rig.PAGE.read_text("utf-8")
    assert all(f"\n{number}. " in text for number, _ in rig.attacks().values())
    assert rig.BEGIN in text and rig.END in text
