"""A server that limits, fails, resets and forgets to answer at random: the collection ends exact, or as it was before.

The stand-in of tests/fake_qdrant.py over real HTTP; waits are noted instead of slept through. One request in ten, on
average, meets a fault, and half of those are carried out all the same.
"""

from unittest.mock import patch

import numpy as np
from collection_cases import a_card, load, passages, vectors
from fake_qdrant import FakeQdrant, Fault
from tally import Tally

from xqg_vdb.errors import XqgError
from xqg_vdb.store.layout import CollectionOptions
from xqg_vdb.store.server.client import Server
from xqg_vdb.store.server.store import ServerStore

N, BATCH, SHARE = 120, 10, 0.1
BUSY = b'{"status":{"error":"Service internal error: task is overloaded"}}'
KINDS = (
    lambda applied: Fault(503, body=BUSY, applied=applied),
    lambda applied: Fault(429, headers={"Retry-After": "1"}, body=b'{"status":{"error":"Rate limiting exceeded"}}'),
    lambda applied: Fault(502, body=b"Bad Gateway", applied=applied),
    lambda applied: Fault(None, applied=applied),
    lambda applied: Fault(504, body=b"", applied=applied),
)


def edition(url, number):
    """Load one edition of the collection."""
    noted = []
    options = {**Server.__init__.__kwdefaults__, "sleep": noted.append}
    card, layout = a_card(alpha=number / 10), CollectionOptions(bulk=False)
    with (
        patch.object(Server.__init__, "__kwdefaults__", options),
        ServerStore.connect(url, timeout=60, options=layout) as store,
    ):
        load(store, "wiki", passages(N, tag=f"{number}-"), vectors(N, seed=number), card=card, batch=BATCH)


def content(url):
    """{id: (text, vector)} of what is published."""
    with ServerStore.connect(url) as store:
        points = store.scroll("wiki", with_vectors=True)
        return {point.id: (point.payload["content"], point.vectors["text-dense"]) for point in points}


def equal(left, right):
    """The stand-in makes vectors unit length each time that it is sent them: not to the bit."""
    if left.keys() != right.keys():
        return False
    return all(left[key][0] == right[key][0] and np.allclose(left[key][1], right[key][1], atol=1e-5) for key in left)


def misbehaving(rng, folder, rounds):
    tally, sent = Tally(), 0
    with FakeQdrant() as fake:
        edition(fake.url, 1)
        edition(fake.url, 2)
        least, wanted = len(fake.requests) / 2, content(fake.url)
    for _ in range(rounds):
        with FakeQdrant() as fake:
            edition(fake.url, 1)
            before, plan = content(fake.url), []
            fake.requests.clear()

            def misbehave(method, path, fake=fake, plan=plan):
                fake.faults.clear()
                if rng.random() < SHARE:
                    fault = rng.choice(KINDS)(rng.random() < 0.5)
                    plan.append((method, path, fault.status))
                    fake.faults.append(fault)

            fake.before = misbehave
            try:
                edition(fake.url, 2)
                outcome = "done"
            except XqgError as error:
                outcome = f"given up ({type(error).__name__})"
            sent += len(fake.requests)
            fake.before = lambda method, path: None
            fake.faults.clear()
            tally.tried += 1
            tally.hit += bool(plan)
            tally.note(outcome)
            now = content(fake.url)
            if not any(equal(now, state) for state in ((wanted,) if outcome == "done" else (before, wanted))):
                tally.bad.append(f"{outcome}, but the collection is neither the old nor the new: {plan}")
            if outcome != "done":
                edition(fake.url, 2)
                if not equal(content(fake.url), wanted):
                    tally.bad.append(f"{outcome}, and the same load again did not end it: {plan}")
    tally.note(f"{sent / max(1, rounds) / least:.2f} × the requests of a load without faults")
    return tally


ATTACKS = {"a misbehaving server": (2, misbehaving)}
