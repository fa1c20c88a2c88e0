"""The recipes of the documentation: each app is used as its users do, updated under load, and rolled back.

The tests build on each other, in the order of this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from tornado.websocket import WebSocketClientConnection

from tests.support.browser import chromium
from tests.support.load import Load, table
from tests.support.recipes import Project, User, multipart, publish
from tests.support.remote import eventually, hosts

#: The path of each app that shows its version, and the version there.
JSON_VERSION = ("/", r'"version": ?(\d)')
VERSIONED = dict.fromkeys(("chat", "notes", "gallery", "guestbook", "thumbnails", "ticker", "shop", "wiki"), JSON_VERSION) | {
    "primes": ("/1000", JSON_VERSION[1]),
    "library": ("/openapi.json", r'"version":"(\d)"'),
    "books": ("/", r"Books (\d)"),
}

#: The path that the load requests, if it is not ``/``.
LOADED = {"primes": "/1000", "library": "/books", "books": "/-/static/app.css", "lab": "/api", "pipeline": "/api/task_list"}
LOADED |= {"explorer": "/_stcore/health", "dashboard": "/dashboard"}

TASK = "Total --day 2026-01-31"
COVER = b"\x89PNG" + bytes(range(256)) * 40


@pytest.fixture(scope="module")
def browser(users: dict[str, User]) -> Iterator[Chrome]:
    """Run a browser that finds the apps by their names."""
    with chromium(**{user.site.name: user.site.address for user in users.values()}) as driver:
        yield driver


def talk(user: User, path: str, *messages: Any, answers: int) -> list[Any]:
    """Send messages over a websocket, and return the given number of answers."""

    async def conversation(connection: WebSocketClientConnection) -> list[Any]:
        for message in messages:
            await connection.write_message(message if isinstance(message, str) else json.dumps(message))
        return [await connection.read_message() for _ in range(answers)]

    return list(user.site.websocket(path, conversation, **user.headers))


def test_tornado_users_chat(users: dict[str, User]) -> None:
    ann = users["chat"]
    bob = User(ann.site)
    assert [user.post("/login", name=name).status for user, name in ((ann, "ann"), (bob, "bob"))] == [302, 302]
    assert ann.get().json == {"version": 1, "user": "ann"}

    async def listen(connection: WebSocketClientConnection) -> str:
        await asyncio.to_thread(talk, bob, "/room", "hello", answers=1)
        return str(await connection.read_message())

    assert ann.site.websocket("/room", listen, **ann.headers) == "bob: hello"
    assert talk(ann, "/room", answers=1) == ["bob: hello"]


def test_flask_user_writes_notes_and_uploads_a_file(users: dict[str, User]) -> None:
    user = users["notes"]
    assert user.post("/", text="not logged in").status == 401
    assert user.post("/login", name="ann").status == 302
    assert user.post("/", text="first").status == 302
    assert user.get().json == {"version": 1, "user": "ann", "notes": [["ann", "first"]]}
    uploaded = user.post("/attachments", files={"file": ("cover.png", COVER)})
    assert uploaded.headers["location"] == "/media/cover.png"
    served = user.get("/media/cover.png")
    assert (served.status, served.body, served.headers["content-type"]) == (200, COVER, "image/png")


def test_django_admin_adds_a_photo(project: Project, users: dict[str, User]) -> None:
    user = users["gallery"]
    create = "python manage.py createsuperuser --noinput --username admin --email admin@example.com"
    project.run("playbooks/run.yml", "-e", "app=gallery", "-e", f'command="{create}"', "--limit", "debian13")

    def token(path: str) -> str:
        found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', user.get(path).body.decode())
        assert found
        return found[1]

    login = "/admin/login/?next=/admin/"
    logged_in = user.post(login, csrfmiddlewaretoken=token(login), username="admin", password="correct-horse-battery-staple")
    assert logged_in.headers.get("location") == "/admin/"
    assert user.get("/static/admin/css/base.css").status == 200
    add = "/admin/photos/photo/add/"
    added = user.post(add, files={"file": ("cat.png", COVER)}, csrfmiddlewaretoken=token(add), title="Cat")
    assert added.headers.get("location") == "/admin/photos/photo/"
    assert b"Cat" in user.get("/admin/photos/photo/").body
    assert user.get().json == {"version": 1, "photos": [["Cat", "/media/photos/cat.png"]]}
    assert user.get("/media/photos/cat.png").body == COVER


def test_fastapi_user_adds_a_book_with_its_cover(users: dict[str, User]) -> None:
    user = users["library"]
    book = {"title": "Ulysses", "year": 1922}
    sent = user.request("POST", "/books", json.dumps(book), {"Content-Type": "application/json"})
    assert (sent.status, user.get("/books").json) == (201, [book])
    kind, body = multipart({}, {"file": ("1.png", COVER)})
    assert user.request("PUT", "/covers/1", body, {"Content-Type": kind}).json == {"bytes": len(COVER)}
    assert user.get("/covers/1").body == COVER
    assert talk(user, "/count", answers=2) == ["1", "1"]
    assert user.get("/openapi.json").json["info"] == {"title": "Library", "version": "1"}


def test_starlette_user_signs_and_sees_new_entries(users: dict[str, User]) -> None:
    user = users["guestbook"]
    with user.site.connect() as connection:
        connection.sendall(f"GET /events HTTP/1.1\r\nHost: {user.site.host}\r\nAccept: text/event-stream\r\n\r\n".encode())
        assert user.post("/sign", name="ann", text="hello").status == 303
        received = b""
        while b'data: ["ann", "hello"]' not in received:
            chunk = connection.recv(4096)
            assert chunk, received
            received += chunk
    assert user.get().json == {"version": 1, "user": "ann", "entries": [["ann", "hello"]]}
    assert talk(user, "/latest", "?", answers=1) == ['["ann","hello"]']


def test_streamlit_keeps_the_session_and_reads_an_upload(users: dict[str, User], browser: Chrome, tmp_path: Any) -> None:
    browser.get(f"http://{users['explorer'].site.name}/")
    shows(browser, "Explorer 1")
    for count in (1, 2, 3):
        WebDriverWait(browser, 40).until(lambda _: browser.execute_script(PRESS, "Add"))
        shows(browser, f"Count: {count}")
    file = tmp_path / "words.txt"
    file.write_text("one two three four")
    WebDriverWait(browser, 40).until(lambda _: browser.find_elements(By.CSS_SELECTOR, "input[type=file]"))
    browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(file))
    shows(browser, "4 words")


def test_panel_computes_with_the_state_of_the_session(users: dict[str, User], browser: Chrome) -> None:
    browser.get(f"http://{users['dashboard'].site.name}/")
    shows(browser, "Dashboard 1")
    for count in (1, 2):
        # Bokeh's widgets are in shadow trees, where selectors of the document find nothing.
        browser.execute_script(f"for (const button of {FIND}(document)) button.click()")
        shows(browser, f"clicked {count}: 9")


#: A function that returns all elements that match ``button.bk-btn``, also those in shadow trees.
FIND = """(function find(root) {
  return [...root.querySelectorAll("*")].flatMap((one) =>
    [...(one.matches("button.bk-btn") ? [one] : []), ...(one.shadowRoot ? find(one.shadowRoot) : [])]);
})"""

#: Presses the button with a text, and returns whether there is one; pages replace their elements while they load.
PRESS = """const button = [...document.querySelectorAll("button")].find((one) => one.innerText.trim() === arguments[0]);
button?.click();
return Boolean(button);"""

TEXT = """return (function text(root) {
  return [...root.childNodes].map((one) => (one.nodeType === 3 ? one.data : "") +
    (one.shadowRoot ? text(one.shadowRoot) : "") + (["STYLE", "SCRIPT"].includes(one.nodeName) ? "" : text(one))).join(" ");
})(document.body)"""


def shows(browser: Chrome, text: str) -> None:
    """Wait until the page shows a text, also in shadow trees."""
    WebDriverWait(browser, 40).until(lambda _: text in " ".join(browser.execute_script(TEXT).split()), f"no {text!r}")


def test_jupyterlab_runs_a_cell_and_keeps_notebooks(users: dict[str, User]) -> None:
    user = users["lab"]
    assert user.get("/api/contents").status == 403
    token = {"Authorization": "token correct-horse-battery-staple"}
    notebook = {"type": "file", "format": "text", "content": "answer = 42"}
    assert user.request("PUT", "/api/contents/answer.py", json.dumps(notebook), token).status in (200, 201)
    kernel = user.request("POST", "/api/kernels", json.dumps({"path": "answer.py"}), token).json["id"]
    code = "import pathlib; exec(pathlib.Path('answer.py').read_text()); print(answer)"
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "session": uuid.uuid4().hex}
    content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}

    async def run(connection: WebSocketClientConnection) -> str:
        await connection.write_message(json.dumps(message))
        while True:
            received = json.loads(await connection.read_message() or "null")
            assert received["msg_type"] != "error", received["content"]
            if received["msg_type"] == "stream":
                return str(received["content"]["text"])

    assert user.site.websocket(f"/api/kernels/{kernel}/channels", run, **token) == "42\n"
    assert user.request("DELETE", f"/api/kernels/{kernel}", None, token).status == 204


def test_celery_runs_a_task(users: dict[str, User]) -> None:
    user = users["thumbnails"]
    task = user.post("/thumbnails", size="200").json["id"]
    assert eventually(lambda: (found := user.get(f"/thumbnails/{task}").json)["state"] == "SUCCESS" and found)["result"] == 100


def test_procfile_app_sells_while_its_clock_ticks(users: dict[str, User]) -> None:
    user = users["shop"]
    assert user.post("/purchases", article="tea").status == 201
    first = user.get().json
    assert (first["currency"], first["purchases"]) == ("EUR", ["tea"])
    eventually(lambda: user.get().json["ticks"] > first["ticks"])


def test_datasette_answers_queries(users: dict[str, User]) -> None:
    user = users["books"]
    assert user.get("/books/before.json?year=1900&_shape=arrayfirst").json == ["Moby-Dick", "Middlemarch"]
    assert b"Books 1" in user.get().body


def test_luigi_runs_a_pipeline_that_the_scheduler_shows(project: Project, users: dict[str, User]) -> None:
    user = users["pipeline"]
    command = f"python -m luigi --module pipeline {TASK} --scheduler-url http://pipeline.example.com"
    project.run("playbooks/run.yml", "-e", "app=pipeline", "-e", f'command="{command}"', "--limit", "ubuntu2404")
    done = user.get(f"/api/task_list?data={json.dumps({'status': 'DONE', 'upstream_status': ''})}".replace(" ", "")).json
    assert sorted(task["display_name"] for task in done["response"].values()) == [
        "Extract(day=2026-01-31)",
        "Total(day=2026-01-31)",
    ]
    assert hosts()["ubuntu2404"].check_output("cat /srv/pipeline/shared/data/2026-01-31.total") == "6 by version 1"


def test_node_passes_a_message_to_all_clients(users: dict[str, User]) -> None:
    user = users["ticker"]

    async def listen(connection: WebSocketClientConnection) -> Any:
        await asyncio.to_thread(talk, user, "/live", {"price": 7}, answers=1)
        return json.loads(await connection.read_message() or "null")

    assert user.site.websocket("/live", listen) == {"price": 7}
    assert user.get().json["quotes"] == [{"price": 7}]


def test_c_extension_computes(users: dict[str, User]) -> None:
    assert users["primes"].get("/1000").json == {"version": 1, "primes": 168}


def test_private_repository_is_served(users: dict[str, User]) -> None:
    assert users["wiki"].get().json == {"version": 1}


def test_update_under_load_keeps_all_data(project: Project, users: dict[str, User], browser: Chrome) -> None:
    before, releases = kept(users), live_releases()
    assert versions(users) == dict.fromkeys(VERSIONED, "1")
    task = users["thumbnails"].post("/thumbnails", size="200", seconds="8").json["id"]
    for app in users:
        project.release(app, 2)
    publish(hosts()["ubuntu2404"], project.sources / "wiki", "v2.0.0")
    project.hosts["debian13"]["tornado_apps"]["wiki"]["source"]["version"] = "v2.0.0"
    project.write_inventory()
    shape = {"connections": 1, "polls": 0, "websockets": 0, "post": "", "pause": 0.5}
    loads = {app: Load(user.site.address, host=user.site.name, get=LOADED.get(app, "/"), **shape) for app, user in users.items()}
    with contextlib.ExitStack() as stack:
        for load in loads.values():
            stack.enter_context(load)
        project.run("playbooks/deploy.yml", "-e", f"app={','.join(users)}")
    results = {app: load.result for app, load in loads.items()}
    assert {app: result.failed for app, result in results.items()} == dict.fromkeys(results, 0), "\n".join(table(results))
    assert min(result.requests for result in results.values()) > 20
    assert releases.keys() == users.keys()
    assert not releases.items() & live_releases().items()
    assert versions(users) == dict.fromkeys(VERSIONED, "2")
    for app in ("explorer", "dashboard"):
        browser.get(f"http://{users[app].site.name}/")
        shows(browser, f"{app.title()} 2")
    assert kept(users) == before
    found = eventually(lambda: (found := users["thumbnails"].get(f"/thumbnails/{task}").json)["state"] == "SUCCESS" and found)
    assert found["result"] == 100, "the task that ran during the deploy"


def test_rollback_keeps_what_the_newer_release_wrote(project: Project, users: dict[str, User]) -> None:
    assert users["notes"].post("/", text="second").status == 302
    assert users["guestbook"].post("/sign", name="ann", text="again").status == 303
    assert users["shop"].post("/purchases", article="milk").status == 201
    assert talk(users["chat"], "/room", "bye", answers=2) == ["bob: hello", "ann: bye"]
    assert talk(users["ticker"], "/live", {"price": 8}, answers=1) == ['{"price":8}']
    before = kept(users)
    assert before["notes"]["notes"] == [["ann", "first"], ["ann", "second"]]
    releases = live_releases()
    project.run("playbooks/rollback.yml", "-e", f"app={','.join(users)}")
    assert not releases.items() & live_releases().items()
    assert versions(users) == dict.fromkeys(VERSIONED, "1")
    assert kept(users) == before


def live_releases() -> dict[str, str]:
    """Return the live release of each app."""
    lines = [line for host in hosts().values() for line in host.check_output("ls -l /srv/*/live/release").splitlines()]
    return {match[1]: match[2] for line in lines if (match := re.search(r"/srv/(\w+)/live/release -> .*/(\w+)$", line))}


def versions(users: dict[str, User]) -> dict[str, str]:
    """Return the version that each app shows, of those that show one without a browser."""
    found = {app: re.search(shown, users[app].get(path).body.decode()) for app, (path, shown) in VERSIONED.items()}
    return {app: match[1] for app, match in found.items() if match}


def kept(users: dict[str, User]) -> dict[str, Any]:
    """Return the state of the apps that keep any, and what is served from their releases."""
    shown = {app: users[app].get().json for app in ("notes", "gallery", "guestbook", "ticker", "shop")}
    token = {"Authorization": "token correct-horse-battery-staple"}
    return {
        app: {key: value for key, value in keys.items() if key not in ("version", "ticks")} for app, keys in shown.items()
    } | {
        "photo": users["gallery"].get("/media/photos/cat.png").body == COVER,
        "attachment": users["notes"].get("/media/cover.png").body == COVER,
        "library": users["library"].get("/books").json,
        "cover": users["library"].get("/covers/1").body == COVER,
        "chat": talk(users["chat"], "/room", answers=1),
        "lab": users["lab"].request("GET", "/api/contents/answer.py", None, token).json["content"],
        "pipeline": hosts()["ubuntu2404"].check_output("cat /srv/pipeline/shared/data/2026-01-31.total"),
        "books": users["books"].get("/books/before.json?year=1900&_shape=arrayfirst").json,
        "primes": users["primes"].get("/1000").json["primes"],
    }
