"""The record beside trained weights: README.md for people, training.json for machines.

What it was trained on (counts and digest, never the texts), from what, how, and what came out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.files import write_atomic
from xqg_vdb.generation.provenance import versions
from xqg_vdb.training.running import Outcome

PACKAGES = ("xqg-vdb", "torch", "transformers", "accelerate", "tokenizers")


def write_card(folder: Path, *, identity: Mapping[str, Any], outcome: Outcome, licence: str) -> None:
    """Write README.md and training.json into `folder`. identity: kind, base, pairs, dev, settings of the run."""
    import torch

    record = {
        **identity,
        "licence": licence,
        "results": {
            "steps": outcome.steps,
            "seconds": round(outcome.seconds, 1),
            "resumed_at": outcome.resumed_at,
            "final_loss": outcome.losses[-1] if outcome.losses else None,
            "dev_before": dict(outcome.before),
            "dev_after": dict(outcome.after),
        },
        "history": [dict(entry) for entry in outcome.history],
        "made_with": versions(PACKAGES),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    write_atomic(folder / "training.json", orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n")
    write_atomic(folder / "README.md", card_text(record).encode())


def card_text(record: Mapping[str, Any]) -> str:
    """The model card of a `training.json` record, in Markdown with the front matter of the model hub."""
    kind, results, pairs, dev = record["kind"], record["results"], record["pairs"], record["dev"]
    settings = {**record["settings"], **record["settings"]["schedule"]}
    settings.pop("schedule")
    front = ["---", f"license: {str(record['licence']).split()[0].rstrip(':')}", "tags: [xqg-vdb]", "---"]
    use = {
        "generator": "xqg-vdb export --generator THIS_FOLDER OUT",
        "encoder": "xqg-vdb export THIS_FOLDER OUT",
    }[kind]
    lines = [
        *front, "", f"# Fine-tuned {kind}", "",
        f"Trained by xqg-vdb {record['made_with']['xqg-vdb']} from `{record['base']}`. To use it: `{use}`.", "",
        "## Data", "",
        f"- training: {_told(pairs)}",
        f"- dev: {_told(dev) if dev['pairs'] else 'none'}",
        *([f"- in both: {record['leakage']}"] if dev["pairs"] else []),
        "", "## Licence", "", f"Of the base model: {record['licence']}. The data may add conditions of its own.", "",
        "## Results", "", "| | dev before | dev after |", "|---|---|---|",
        *(f"| {name} | {results['dev_before'].get(name, float('nan')):.4f} | {value:.4f} |"
          for name, value in results["dev_after"].items()),
        "",
        f"{results['steps']} steps, final training loss {_number(results['final_loss'])}, on {record['device']}.",
        "", "## Hyper-parameters", "", "| | |", "|---|---|",
        *(f"| {name} | {value} |" for name, value in settings.items() if not isinstance(value, dict)), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _told(data: Mapping[str, Any]) -> str:
    languages = ", ".join(f"{lang} {count}" for lang, count in data["languages"].items())
    return f"{data['pairs']} pairs about {data['passages']} passages ({languages}), SHA-256 {data['sha256']}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
