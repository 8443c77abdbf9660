"""`make bench-check`: a ratio that fell by more than the tolerance is named; one that rose, or is new, is not."""

import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_only_what_fell_too_far_is_named(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import check

    known = {"fell": 1.0, "a little": 1.0, "rose": 0.5}
    assert check.compared({"fell": 0.6, "a little": 0.7, "rose": 2.0, "new": 0.1}, known) == ["fell"]
    assert capsys.readouterr().out.count("SLOWER") == 1
    assert check.cpu_class() and "check" in sys.modules
    for kind, record in json.loads((BENCHMARKS / "ratios.json").read_text()).items():
        assert set(kind.split()) <= {*check.FEATURES, "plain", "unknown"} and record["points"] and record["versions"]
