"""A load as a job of Ray Data on a local cluster of two cores: the collection is the one that `load` makes."""

import os
import warnings

import pytest
from fake_qdrant import FakeQdrant
from test_batches import passages, points_of, queries
from tiny_model import write_tiny_encoder

from xqg_vdb import Encoder
from xqg_vdb.errors import DataError
from xqg_vdb.index.load import load
from xqg_vdb.store import open_store

ray = pytest.importorskip("ray", reason="needs Ray Data: pip install 'xqg-vdb[ray]'")
pytestmark = pytest.mark.timeout(300)
N = 1300  # three windows


@pytest.fixture(scope="module")
def cluster():
    paths = os.environ.get("PYTHONPATH", "")
    tests = os.path.dirname(__file__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": f"{tests}{os.pathsep}{paths}"}},
        )  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_tiny_encoder(folder, calibration=0.5)
    return folder


@pytest.fixture(params=["stand-in", "server"])
def url(request):
    if request.param == "stand-in":
        with FakeQdrant() as fake:
            yield fake.url
    elif "XQG_TEST_QDRANT_URL" in os.environ:
        yield os.environ["XQG_TEST_QDRANT_URL"]
    else:
        pytest.skip("XQG_TEST_QDRANT_URL names no server")


def test_a_job_makes_what_a_load_makes(cluster, model, url):
    from xqg_vdb.integrations.ray import load_dataset

    asked = queries(N)
    rows = [{**row, "generated_queries": asked.get(row["id"])} for row in passages(N)]
    dataset = cluster.data.from_items(rows, override_num_blocks=7)
    store = open_store(url=url)
    try:
        card = load_dataset(dataset, "job", url=url, encoder=model)
        records = [{"id": docid, "generated_queries": found} for docid, found in asked.items()]
        load(passages(N), "whole", encoder=Encoder(model), queries=records, store=store)
        whole = store.card("whole")
        assert (card.count, card.digest, card.query_langs) == (N, whole.digest, ("ha", "sw"))
        assert card.query_means == whole.query_means
        assert points_of(store, "job") == points_of(store, "whole")
    finally:
        for name in ("job", "whole"):
            store.delete(name)
        store.close()


def test_a_bad_row_stops_the_job_and_nothing_is_published(cluster, model):
    from xqg_vdb.integrations.ray import load_dataset

    with FakeQdrant() as fake:
        rows = [*passages(600), {"id": "bad", "title": "", "text": " ", "lang": "en", "page": 0}]
        with pytest.raises(DataError, match=r"'bad'.* is no passage"):
            load_dataset(cluster.data.from_items(rows), "job", url=fake.url, encoder=model)
        fake.refused = {"p550"}
        with pytest.raises(DataError, match="Passage 'p550' cannot be stored"):
            load_dataset(cluster.data.from_items(passages(600)), "job", url=fake.url, encoder=model)
        store = open_store(url=fake.url)
        assert store.names() == []
        store.close()
