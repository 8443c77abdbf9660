from hypothesis import given
from hypothesis import strategies as st

from xqg_vdb.models.encoder import token_budget_batches
from xqg_vdb.progress import windows


@given(lengths=st.lists(st.integers(0, 600), max_size=200), budget=st.integers(1, 4096), rows=st.integers(1, 64))
def test_batches_cover_everything_once_within_the_budget(lengths, budget, rows):
    batches = token_budget_batches(lengths, budget=budget, max_rows=rows)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        longest = max(max(lengths[i] for i in batch), 1)
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * longest <= budget


def test_one_long_text_never_pads_thirty_short_ones():
    lengths = [500, *[20] * 30]
    batches = token_budget_batches(lengths, budget=1024, max_rows=256)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    # 2 × 500 for the batch of the long text and one short one, 29 × 20 for the rest; one batch of all: 31 × 500 =
    # 15,500
    assert padded == 2 * 500 + 29 * 20


def test_a_text_longer_than_the_budget_makes_its_own_batch():
    assert [batch.tolist() for batch in token_budget_batches([10, 9000], budget=512, max_rows=8)] == [[1], [0]]


def test_windows_read_no_further_than_one_window():
    read = []

    def items():
        for i in range(10):
            read.append(i)
            yield i

    stream = windows(items(), 4)
    assert next(stream) == [0, 1, 2, 3]
    assert read == [0, 1, 2, 3]
    assert [*stream] == [[4, 5, 6, 7], [8, 9]]
