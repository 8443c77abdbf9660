"""What a Qdrant server says, and what it means: every row of the table over REST and gRPC, threads and coroutines."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading

import grpc
import httpx
import pytest
from httpx import Headers
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from xqg_vdb.errors import CorruptError, DataError, MismatchError, ServerError
from xqg_vdb.store import open_store
from xqg_vdb.store.server import client, names
from xqg_vdb.store.server.client import (
    ANSWERS,
    Exists,
    Limited,
    NoAccess,
    NotFound,
    Pending,
    Refused,
    Server,
    TooLarge,
    answer_of,
)

FIRST_FRAME = b"\0\0\0\4\0\0\0\0\0"  # of HTTP/2: no settings
CODES = grpc.StatusCode
ROWS = [  # status, code, words, error, what the error says
    (500, CODES.INTERNAL, "Service internal error: No space left on device: WAL buffer size exceeds available space",
     ServerError, "The disk of HOST is full"),
    (400, CODES.OUT_OF_RANGE, "Payload error: JSON payload (40 bytes) is larger than allowed (limit: 30 bytes).",
     TooLarge, "use smaller batches"),
    (413, CODES.OUT_OF_RANGE, "Error, decoded message length too large: found 40 bytes, the limit is: 30 bytes",
     TooLarge, "use smaller batches"),
    (429, CODES.RESOURCE_EXHAUSTED, "Rate limiting exceeded: request larger than rate limiter capacity, please try to"
     " split your request", TooLarge, "use smaller batches"),
    (429, CODES.RESOURCE_EXHAUSTED, "Rate limiting exceeded: Write rate limit exceeded: Operation requires 128 tokens"
     " but only 4.4 were available. Retry after 31s", ServerError, "raise that limit there"),
    (400, CODES.INVALID_ARGUMENT, 'Bad request: Limit exceeded 90 > 10 for "upsert limit". Help: Reduce it.',
     TooLarge, "use smaller batches"),
    (400, CODES.INVALID_ARGUMENT, 'Bad request: Limit exceeded 512 > 100 for "limit". Help: Reduce the "limit".',
     Limited, "strict mode"),
    (400, CODES.INVALID_ARGUMENT, "Bad request: Max points count limit of 10 reached!",
     Limited, "strict mode"),
    (400, CODES.INVALID_ARGUMENT, 'Bad request: Index required but not found for "meta.year" of one of the following'
     " types: [float, integer]. Help: Create an index for this key or use a different filter.",
     Limited, "Create an index"),
    (500, CODES.INTERNAL, "Service internal error: Waiting for consensus operation commit failed. Timeout set at: 10",
     Pending, "may still be carried out"),
    (500, CODES.INTERNAL, "Service internal error: 1 of 1 read operations failed: Service internal error: Tonic status"
     " error: code: 'The service is currently unavailable', message: 'Failed to connect to http://127.0.0.1:7052/'",
     ServerError, "A node of the cluster of HOST is away"),
    (500, CODES.INTERNAL, "Service internal error: 0 of 0 read operations failed",
     ServerError, "A node of the cluster of HOST is away"),
    (500, CODES.INTERNAL, "Service internal error: File IO error: Malformed tar archive, reached unknown entry",
     CorruptError, "take another copy"),
    (500, CODES.INTERNAL, "Service internal error: File IO error: failed to unpack `/storage/tmp/0/segments/5fd.tar`",
     CorruptError, "take another copy"),
    (400, CODES.DATA_LOSS, "Checksum mismatch: expected aa, actual bb",
     CorruptError, "take another copy"),
    (400, CODES.INVALID_ARGUMENT, "Wrong input: Vector dimension error: expected dim: 8, got 2",
     MismatchError, "do not fit"),
    (400, CODES.INVALID_ARGUMENT, "Wrong input: Not existing vector name error: nope",
     MismatchError, "do not fit"),
    (400, CODES.INVALID_ARGUMENT, "Wrong input: Can't create collection with name x. Alias with the same name already"
     " exists", Exists, "has that already"),
    (409, CODES.ALREADY_EXISTS, "Wrong input: Collection `x` already exists!", Exists, "already"),
    (409, CODES.ALREADY_EXISTS, "in other words", Exists, "has that already"),
    (413, CODES.OUT_OF_RANGE, "in other words", TooLarge, "use smaller batches"),
    (401, CODES.UNAUTHENTICATED, "Must provide an API key", ServerError, "set XQG_VDB_API_KEY"),
    (403, CODES.PERMISSION_DENIED, "ExpiredSignature", ServerError, "refuses the API key"),
    (403, CODES.PERMISSION_DENIED, "Forbidden: Global manage access is required",
     NoAccess, "may not write"),
    (403, CODES.PERMISSION_DENIED, "Forbidden: Write access to collection x is required",
     NoAccess, "may not write"),
    (403, CODES.PERMISSION_DENIED, "Forbidden: Access to collection x is required",
     NoAccess, "may not see this"),
    (404, CODES.NOT_FOUND, "Not found: Collection `x` doesn't exist!", NotFound, "no such collection"),
    (404, None, "", NotFound, "check its port and its path"),
    (507, None, "Insufficient storage: disk usage", ServerError, "has reached its quota"),
    (507, CODES.RESOURCE_EXHAUSTED, "Disk usage is at 97% of the disk, exceeding the configured limit of 95%. Help: …",
     ServerError, "has reached its quota"),
    (507, CODES.RESOURCE_EXHAUSTED, "Disk usage is at 93% of the disk. It reached the configured limit of 95% and has"
     " to fall below 90% before this node takes writes again", ServerError, "has reached its quota"),
    (400, CODES.INVALID_ARGUMENT, "Bad request: Resident memory usage is at 60% of total memory, exceeding the"
     " configured limit of 50%. Help: Reduce memory usage", ServerError, "has reached its quota"),
    (422, CODES.INVALID_ARGUMENT, "Validation error in JSON body: [limit: value 0 invalid]",
     Refused, "for good"),
    (405, CODES.UNIMPLEMENTED, "no", ServerError, "cannot do this"),
    *[(status, code, "away", ServerError, "away or overloaded") for status, code in (
        (408, CODES.DEADLINE_EXCEEDED), (425, None), (429, CODES.RESOURCE_EXHAUSTED), (500, CODES.INTERNAL),
        (502, None), (503, CODES.UNAVAILABLE), (504, CODES.ABORTED), (500, CODES.UNKNOWN))],
]  # fmt: skip


class Refusal(grpc.RpcError):
    """As gRPC's clients raise it; the one for coroutines is no `grpc.Call`."""

    def __init__(self, code, words):
        super().__init__(words)
        self._code, self._words = code, words

    def code(self):
        return self._code

    def details(self):
        return self._words


def over_rest(status, words):
    body = b'{"status":{"error":"%s"}}' % words.replace('"', '\\"').encode()
    return UnexpectedResponse(status, "", body, Headers())


def over_grpc(code, words):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=words)


def raised(error, *, coroutine):
    """What a server that answers like that ends in, at once or when patience has ended."""
    server, calls = Server("HOST", deadline=0.0), []

    def request():
        calls.append(1)
        raise error

    async def awaited():
        request()

    with pytest.raises(Exception) as caught:
        asyncio.run(server.call_async(awaited)) if coroutine else server.call(request)
    assert len(calls) == 1 + ("512 > 100" in str(caught.value))  # a limit that it names is kept to the next time
    return caught.value


@pytest.mark.parametrize("coroutine", [False, True])
@pytest.mark.parametrize(("status", "code", "words", "kind", "says"), ROWS)
def test_an_answer_means_the_same_over_both_protocols(status, code, words, kind, says, coroutine):
    errors = [over_rest(status, words)]
    if code is not None:
        errors += [Refusal(code, words), over_grpc(code, words)]
    for error in errors:
        found = raised(error, coroutine=coroutine)
        assert type(found) is kind
        assert says in str(found) and "HOST" in str(found)


def test_every_row_of_the_table_has_its_test():
    certain = [row[4] for row in ROWS] + ["check the port", "SSL_CERT_FILE"]
    messages = [message.format(where="HOST", said="") for _, _, (_, message) in ANSWERS]
    assert [message for message in messages if not any(says in message for says in certain)] == []


def test_who_waits_is_told_what_for_and_how_long_still(caplog):
    now, said = [0.0], "Service internal error: 0 of 0 read operations failed"
    errors = [over_rest(500, said), over_rest(500, said), Refusal(CODES.UNAVAILABLE, "Connection reset")]

    def sleep(seconds):
        now.append(now[-1] + 20)

    server = Server("HOST", deadline=600.0, sleep=sleep, clock=lambda: now[-1])

    def request():
        if errors:
            raise errors.pop()

    server.call(request)
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(" (")[0] for line in told] == [
        "HOST is away or overloaded", *["A node of the cluster of HOST is away"] * 2,
    ]  # fmt: skip
    assert [line.rpartition(", for ")[2] for line in told] == [f"{left} s at most" for left in (600, 580, 560)]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ResponseHandlingException(httpx.RemoteProtocolError("illegal status line: bytearray(b'HTT')")),
         "check the port"),
        (ResponseHandlingException(httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number")),
         "http:// or https://"),
        (Refusal(CODES.UNAVAILABLE, "Trying to connect an http1.x server"), "check the port"),
        (Refusal(CODES.UNAVAILABLE, "Expected SETTINGS frame as the first frame, got frame type 80"), "check the port"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "as a Qdrant server"),
        (ResponseHandlingException(httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")),
         "SSL_CERT_FILE"),
        (Refusal(CODES.UNAVAILABLE, "Ssl handshake failed: CERTIFICATE_VERIFY_FAILED"),
         "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"),
    ],
)  # fmt: skip
def test_a_wrong_end_is_certain_at_the_first_try(error, says):
    assert says in str(raised(error, coroutine=False))


@pytest.mark.parametrize("source", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.ReadError("reset")])
def test_a_broken_conversation_may_go_better(source):
    assert answer_of(ResponseHandlingException(source))[0][0] is None


@pytest.mark.parametrize(("scheme", "hello"), [("http", b""), ("grpc", FIRST_FRAME)], ids=["rest", "grpc"])
def test_a_server_that_takes_a_request_and_never_answers_is_given_up_in_time(monkeypatch, scheme, hello):
    def hold():
        for connection, _ in iter(listening.accept, None):
            connection.sendall(hello)
            held.append(connection)
            breaking = threading.Timer(10.0, connection.close)  # what waits longer sees it break
            breaking.daemon = True
            breaking.start()

    held = []
    monkeypatch.setattr(names, "READ_DEADLINE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=hold, daemon=True).start()
        with (
            open_store(url=f"{scheme}://127.0.0.1:{listening.getsockname()[1]}", timeout=60) as store,
            pytest.raises(ServerError, match=r"away or overloaded .*(ReadTimeout|DEADLINE_EXCEEDED)"),
        ):
            store.admin.versions("wiki")


def test_a_server_that_stalls_before_its_first_frame_may_come_back():
    stalled = Refusal(CODES.UNAVAILABLE, "connection attempt timed out before receiving SETTINGS frame")
    assert answer_of(stalled)[0][0] is None


def test_a_rate_limit_is_waited_for_as_it_asks():
    (error, _), _, asked = answer_of(ResourceExhaustedResponse(message="Too many requests", retry_after_s=3))
    assert (error, asked) == (None, "3")
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    (error, _), _, asked = answer_of(QdrantException(f"Retry-After header value is not a valid integer: {date}"))
    assert (error, asked) == (None, date)
    assert answer_of(QdrantException("it fails otherwise"))[0][0] is ServerError


def test_a_node_that_was_just_waited_for_is_not_waited_for_again(monkeypatch):
    def away():
        raise ResponseHandlingException(httpx.ReadTimeout("slow"))

    now = [0]
    monkeypatch.setattr(client, "wait_before", lambda asked, attempt: 2)
    server = Server("HOST", deadline=600, sleep=lambda wait: now.append(now[-1] + wait), clock=lambda: now[-1])
    for pause, waits in ((0, 28), (0, 0), (60, 28)):
        now.append(now[-1] + pause)
        before = now[-1]
        with pytest.raises(ServerError, match="away or overloaded"):
            server.call(away, deadline=30)
        assert now[-1] - before == waits


def test_what_the_local_mode_refuses_is_the_datas_fault():
    server = Server(":memory:", deadline=0.0)
    with pytest.raises(DataError, match="refuses the data: odd"):
        server.call(lambda: (_ for _ in ()).throw(ValueError("odd")))


@pytest.mark.parametrize(
    "words", ["[Errno 111] Connection refused", "[Errno -2] Name or service not known", "Domain name not found"]
)
def test_where_nobody_listens_from_the_start_it_is_said_at_once_and_a_restart_is_waited_for(words):
    waited, calls = [], []
    server = Server("here:1", deadline=600, sleep=waited.append, clock=lambda: sum(waited))

    def refused():
        calls.append(1)
        raise ResponseHandlingException(httpx.ConnectError(words))

    with pytest.raises(ServerError, match="here:1 is away or overloaded"):
        server.call(refused)
    assert len(calls) == 2 and sum(waited) <= 0.5
    server.call(lambda: "up")
    with pytest.raises(ServerError, match="here:1 is away or overloaded"):
        server.call(refused)
    assert sum(waited) > 300


def test_a_port_where_nobody_listens_is_told_before_the_client_is_imported():
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        code = (
            "import sys; from xqg_vdb.errors import ServerError; from xqg_vdb.store import open_store\n"
            f"try: open_store(url='http://127.0.0.1:{taken.getsockname()[1]}', knocks=True)\n"
            "except ServerError as error: print(error, 'qdrant_client' in sys.modules)"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    assert "is away" in said and said.endswith("same command again. False\n")
