"""Documents in a real MongoDB, and its outages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from pymongo import MongoClient

from tests.support.remote import eventually
from tests.support.sample_app import App, Response
from tests.support.servers import ADMIN, Server

Start = Callable[..., App]

MAX_SECONDS = 4.0  # until a request fails in an outage


@pytest.fixture
def app(start: Start, database: dict[str, str]) -> App:
    return start(**database)


def assert_error(response: Response, status: int, reason: str) -> None:
    assert response.json == {"error": {"status": status, "reason": reason}}
    assert response.status == status


def test_document_is_created_read_updated_and_deleted(app: App) -> None:
    created = app.fetch("/documents", {"title": "Grüezi", "text": "$set.a\0"})
    assert created.status == 201
    path = created.headers["Location"]
    document = {"id": path.rpartition("/")[2], "title": "Grüezi", "text": "$set.a\0"}
    assert created.json == document
    assert app.fetch(path).json == document
    assert app.fetch("/documents").json == {"documents": [document]}

    assert app.fetch(path, {"title": "Other"}, "PUT").json == document | {"title": "Other", "text": ""}
    assert app.fetch(path).json["title"] == "Other"

    deleted = app.fetch(path, method="DELETE")
    assert (deleted.status, deleted.body) == (204, b"")
    for method, body in (("GET", None), ("PUT", {"title": "x"}), ("DELETE", None)):
        assert_error(app.fetch(path, body, method), 404, "no such document")
    assert app.fetch("/documents").json == {"documents": []}


def connections(mongod: Server) -> int:
    """Return the number of connections of the app's processes to the database."""
    user, password = ADMIN
    idle = {"$currentOp": {"allUsers": True, "idleConnections": True}}
    with MongoClient[dict[str, Any]]("127.0.0.1", mongod.port, username=user, password=password) as client:
        return len(list(client.admin.aggregate([idle, {"$match": {"appName": "sample_app"}}])))


def test_requests_share_the_connection_of_their_process(app: App, mongod: Server) -> None:
    assert app.fetch("/documents").status == 200
    eventually(lambda: connections(mongod) >= 2)  # one of them monitors the server
    before = connections(mongod)
    for number in range(20):
        assert app.fetch("/documents", {"title": str(number)}).status == 201
    assert connections(mongod) <= before + 1  # the driver's monitor may have reconnected


def test_documents_are_listed_in_pages(app: App) -> None:
    ids = [app.fetch("/documents", {"title": str(number)}).json["id"] for number in range(5)]
    seen: list[str] = []
    while page := app.fetch(f"/documents?limit=2{f'&after={seen[-1]}' if seen else ''}").json["documents"]:
        assert len(page) <= 2
        seen += [document["id"] for document in page]
    assert seen == ids
    for invalid in ("0", "1001", "-1", "x", "%C2%B2", "9" * 5000, "0000000001999999"):
        assert_error(app.fetch(f"/documents?limit={invalid}"), 400, "limit must be a whole number from 1 to 1000")
    assert_error(app.fetch("/documents?after=x"), 400, "after must be the id of a document")


def test_document_is_created_from_a_form(app: App) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert app.fetch("/documents", b"title=a+b&text=%24", headers=form).json.items() >= {"title": "a b", "text": "$"}.items()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b'{"title": NaN}', "the body is not JSON"),
        (b'{"title": "\\ud800"}', "the body is not JSON"),
        (b"[" * 200_000, "the body is not JSON"),
        (b"[]", "the body must be a JSON object"),
        (b"{}", "title must be a string of at most 200 characters"),
        (b'{"title": " "}', "title must not be empty"),
        (b'{"title": {"$gt": ""}}', "title must be a string of at most 200 characters"),
        (b'{"title": "a", "text": 1}', "text must be a string of at most 10000 characters"),
        (b'{"title": "a", "_id": "b"}', "unknown key; a document has only title, text"),
    ],
)
def test_invalid_body_is_rejected(shared: App, body: bytes, reason: str) -> None:
    assert_error(shared.fetch("/documents", body), 400, reason)


@pytest.fixture(scope="module")
def shared(mongod_server: Server) -> Any:
    app = App(MONGODB_HOST="127.0.0.1", MONGODB_PORT=str(mongod_server.port))
    yield app
    app.kill()


def test_body_of_another_type_is_rejected(shared: App) -> None:
    assert_error(
        shared.fetch("/documents", b"<a/>", headers={"Content-Type": "text/xml"}),
        415,
        "the body must be application/json or a form",
    )


def test_too_large_body_is_rejected(shared: App) -> None:
    assert_error(shared.fetch("/documents", b" " * (1 << 20) + b"{}"), 413, "Request Entity Too Large")


def test_app_without_a_database_serves_other_pages(start: Start) -> None:
    app = start()
    assert app.fetch("/whoami").status == 200
    assert app.fetch("/readyz").status == 200
    for path in ("/documents", "/jobs"):
        assert_error(app.fetch(path), 503, "no database is configured: set MONGODB_URI or MONGODB_HOST")


def test_wrong_password_is_reported_and_not_logged(start: Start, database: dict[str, str]) -> None:
    app = start(MONGODB_URI=database["MONGODB_URI"].replace("not-for-others", "guessed"))
    for path in ("/documents", "/readyz"):
        response = app.fetch(path)
        assert response.status == 503
        assert "the database rejected the credentials of this app" in response.body.decode()
    assert "Authentication failed" in app.wait_for(" 503 GET /documents .*")[0]
    assert "guessed" not in "\n".join(app.lines)


@pytest.mark.parametrize("outage", ["stop", "kill", "pause"])
def test_outage_returns_503_and_recovers_automatically(app: App, mongod: Server, outage: str) -> None:
    path = app.fetch("/documents", {"title": "kept"}).headers["Location"]
    getattr(mongod, outage)()
    for sent in (None, {"title": "lost"}):
        began = time.monotonic()
        response = app.fetch("/documents", sent)
        assert time.monotonic() - began < MAX_SECONDS
        assert_error(response, 503, "the database is unavailable")
        assert response.headers["Retry-After"] == "1"
    assert app.fetch("/healthz").status == 200
    ready = app.fetch("/readyz")
    assert (ready.status, ready.json["database"]) == (503, "the database is unavailable")

    mongod.resume() if outage == "pause" else mongod.start()
    assert eventually(lambda: app.fetch("/readyz").status == 200, 10)
    assert app.fetch(path).json["title"] == "kept"


def test_acknowledged_writes_survive_a_crash_of_the_database(app: App, mongod: Server) -> None:
    acknowledged: set[str] = set()
    statuses: set[int] = set()
    over = threading.Event()

    def write(number: int) -> None:
        for count in range(10_000):
            if over.is_set():
                return
            response = app.fetch("/documents", {"title": f"{number}/{count}"})
            statuses.add(response.status)
            if response.status == 201:
                acknowledged.add(response.json["id"])

    writers = [threading.Thread(target=write, args=[number]) for number in range(8)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(2):
            time.sleep(1)
            mongod.kill()
            mongod.start()
        time.sleep(1)
    finally:
        over.set()
        for writer in writers:
            writer.join()
    assert statuses == {201, 503}
    assert len(acknowledged) > 50
    found: set[str] = set()
    last = ""
    while page := app.fetch(f"/documents?limit=1000{last}").json["documents"]:
        found |= {document["id"] for document in page}
        last = f"&after={page[-1]['id']}"
    assert acknowledged <= found
