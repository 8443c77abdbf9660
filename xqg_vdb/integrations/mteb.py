"""MTEB: an encoder as a model of the benchmark, told the language of every subset (extra `mteb`)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from xqg_vdb.calibration import TextEncoder
from xqg_vdb.errors import DataError, MissingExtra
from xqg_vdb.texts.languages import detect, normalize
from xqg_vdb.types import UNKNOWN_LANGUAGE, Vectors

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType
except ImportError as error:
    raise MissingExtra(f"{error}: pip install 'xqg-vdb[mteb]'") from error


def mteb_model(encoder: TextEncoder, *, calibrate: bool = True) -> Any:
    """The encoder as what `mteb.evaluate` takes; results are filed under its source, as `calibrated` or `plain`.

    Documents get the convention of passages, everything else that of questions, calibrated for the subset's language.
    Of a subset of two languages, that one which detection finds most often among the texts.
    """
    return _Model(encoder, calibrate=calibrate)


class _Model(AbsEncoder):  # type: ignore[misc]
    def __init__(self, encoder: TextEncoder, *, calibrate: bool) -> None:
        self.encoder, self.calibrate = encoder, calibrate
        facts, way = encoder.facts, "calibrated" if calibrate else "plain"
        name = facts.source.rstrip("/").rpartition("/")[2].replace(":", "-") or "encoder"
        self.mteb_model_meta = ModelMeta.create_empty(
            {"name": f"xqg-vdb/{name}-{way}", "revision": facts.fingerprint, "embed_dim": facts.dim}
            | {"similarity_fn_name": ScoringFunction.COSINE if facts.normalize else ScoringFunction.DOT_PRODUCT}
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        precision: str = "float32",
    ) -> Vectors:
        """Rows (n, dim) float32 of a loader's texts, in their order; batches and progress are the encoder's own."""
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type == PromptType.document:
            return self.encoder.encode_passages(texts)
        lang = _language(texts, task_metadata.hf_subsets_to_langscripts.get(hf_subset, [hf_subset]))
        return self.encoder.encode_queries(texts, question_langs=[lang] * len(texts), calibrate=self.calibrate)


def _language(texts: list[str], scripts: list[str]) -> str | None:
    """The one of a subset's languages (`hau-Latn`) that the texts are in; None: each text's own is to be detected."""
    langs = {code for code in map(_code, scripts) if code != UNKNOWN_LANGUAGE}
    if len(langs) == 1:
        return langs.pop()
    found = Counter(lang for lang in detect(texts) if lang in langs)
    return found.most_common(1)[0][0] if found else None


def _code(script: str) -> str:
    try:
        return normalize(script.replace("_", "-"))
    except DataError:  # a subset's name that is no language, such as "default"
        return UNKNOWN_LANGUAGE
