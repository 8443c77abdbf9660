"""What is seen from outside: spans and metrics by the SDK's in-memory exporter, and the log. Never a text."""

import asyncio
import logging
import subprocess
import sys

import numpy as np
import pytest
from cli_cases import ROOT

from xqg_vdb import AsyncRetriever, Retriever, load
from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.errors import DataError
from xqg_vdb.store import open_store
from xqg_vdb.testing import HashEncoder

SECRET = "secretword"


class Reversed:
    """A reranker that turns a ranking round."""

    depth = 4

    def rerank_all(self, questions, hits, *, progress):
        return [ranking[::-1] for ranking in hits]


@pytest.fixture
def retriever(tmp_path):
    means = LanguageMeans({"sw": np.linspace(-1, 1, 32).astype(np.float32)}, {"sw": 30}, "bank")
    encoder = HashEncoder(calibration=0.9, language_means=means)
    records = [{"id": f"p{i}", "text": f"{SECRET} {i}", "lang": "en"} for i in range(6)]
    with open_store(tmp_path / "s") as store:
        collection = load(records, "wiki", encoder=encoder, store=store).collection
        yield Retriever(encoder, collection, reranker=Reversed())


@pytest.fixture(scope="module")
def exported():
    """Spans and metrics of this process: a provider can be set once."""
    pytest.importorskip("opentelemetry.sdk", reason="the OpenTelemetry SDK is not installed")
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    return exporter, reader


@pytest.mark.parametrize("twin", [False, True])
def test_a_search_is_a_tree_of_spans_with_language_and_strength(retriever, exported, twin):
    exporter, _ = exported
    exporter.clear()
    if twin:

        async def ask():
            async with AsyncRetriever(retriever) as asynchronous:
                await asynchronous.search(SECRET, k=2, question_lang="sw")

        asyncio.run(ask())
    else:
        retriever.search(SECRET, k=2, question_lang="sw")
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {f"xqg_vdb.{step}" for step in ("search", "encode", "calibrate", "rerank")}
    top = spans.pop("xqg_vdb.search")
    assert {span.parent.span_id for span in spans.values()} == {top.context.span_id}
    told = {"collection": "wiki", "questions": 1, "k": 2, "lambda": 0.9, "lang": "sw"}
    assert dict(top.attributes) == {f"xqg_vdb.{key}": value for key, value in told.items()}
    assert spans["xqg_vdb.calibrate"].attributes["xqg_vdb.lang"] == "sw"
    assert spans["xqg_vdb.rerank"].attributes["xqg_vdb.passages"] == 4
    assert not any(SECRET in span.to_json() for span in [top, *spans.values()])


def test_a_context_goes_on_in_the_threads_of_the_asynchronous_retriever(retriever, exported):
    from opentelemetry import trace

    exporter, _ = exported
    exporter.clear()

    async def ask():
        async with AsyncRetriever(retriever) as asynchronous:
            with trace.get_tracer("a service").start_as_current_span("request"):
                await asynchronous.search(SECRET, question_lang="sw")

    asyncio.run(ask())
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["xqg_vdb.search"].parent.span_id == spans["request"].context.span_id


def test_a_failure_is_an_error_without_its_message(retriever, exported, monkeypatch):
    exporter, _ = exported
    exporter.clear()

    def fail(*_, **__):
        raise DataError(f"cannot: {SECRET}")

    monkeypatch.setattr(HashEncoder, "encode_queries", fail)
    with pytest.raises(DataError):
        retriever.search(SECRET)
    for span in exporter.get_finished_spans():
        assert span.attributes["xqg_vdb.error"] == "DataError" and not span.status.is_ok
        assert SECRET not in span.to_json()


def test_seconds_are_metrics(retriever, exported):
    _, reader = exported
    retriever.search(SECRET, question_lang="sw")
    data = reader.get_metrics_data()
    found = {
        metric.name: metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        if scope.scope.name == "xqg_vdb"
        for metric in scope.metrics
    }
    assert {f"xqg_vdb.{step}.duration" for step in ("search", "encode", "calibrate", "rerank")} <= set(found)
    points = found["xqg_vdb.search.duration"].data.data_points
    assert any(point.attributes["xqg_vdb.lang"] == "sw" and point.count >= 1 for point in points)
    kinds = {key for metric in found.values() for point in metric.data.data_points for key in point.attributes}
    assert not kinds & {f"xqg_vdb.{count}" for count in ("k", "questions", "texts", "passages", "depth")}, (
        "endless series"
    )
    assert found["xqg_vdb.search.duration"].unit == "s" and SECRET not in data.to_json()


def test_the_log_tells_the_same_with_fields(retriever, caplog):
    with caplog.at_level(logging.DEBUG, logger="xqg_vdb"):
        retriever.search(SECRET, k=3, question_lang="sw")
    lines = {record.msg % record.args: record for record in caplog.records if record.name == "xqg_vdb"}
    search = next(record for line, record in lines.items() if line.startswith("search "))
    assert vars(search)["xqg_vdb.lang"] == "sw" and vars(search)["xqg_vdb.lambda"] == 0.9 and search.seconds >= 0
    assert not any(SECRET in line for line in lines)


def test_nothing_is_said_and_nothing_imported_unless_configured():
    code = """
import logging, sys
import xqg_vdb, xqg_vdb.search.retriever
from xqg_vdb.progress import traced
with traced("search", {"k": 1}):
    pass
logging.getLogger("xqg_vdb.store.embedded").warning("a library says nothing by itself")
assert "opentelemetry" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
