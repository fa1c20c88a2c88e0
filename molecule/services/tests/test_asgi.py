"""ASGI applications of FastAPI and Django from the package index, requested through nginx."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.load import Load, table
from tests.support.remote import Site, address, apps, deploy, eventually, expect_success, extra_vars, hosts, run_playbook

HOST = "debian12"
NAME = "shop.test"
SITE = "django.test"
SPOOFED = {"X_Real_IP": "203.0.113.9", "X_Forwarded_For": "203.0.113.9", "X_Scheme": "https", "X_Forwarded_Proto": "https"}

FASTAPI = """
import asyncio, contextlib, os, pathlib
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse, StreamingResponse

notes = pathlib.Path(os.environ["HOME"], "notes")

@contextlib.asynccontextmanager
async def lifespan(app):
    if os.environ.get("BROKEN"):
        raise RuntimeError("no database")
    yield {"started": True}

def make_app():
    app = FastAPI(lifespan=lifespan)

    @app.get("/whoami")
    async def whoami(request: Request):
        return {"release": os.environ["TORNADO_RELEASE"], "client": request.client.host, "scheme": request.url.scheme,
                "started": request.state.started}

    @app.get("/sleep")
    async def sleep(seconds: float):
        await asyncio.sleep(seconds)
        return {}

    @app.post("/notes")
    async def add(request: Request):
        with notes.open("a") as file:
            file.write((await request.body()).decode() + "\\n")
        return {}

    @app.get("/notes", response_class=PlainTextResponse)
    async def show():
        return notes.read_text()

    @app.get("/events")
    async def events():
        async def numbers():
            for number in range(3):
                yield f"data: {number}\\n\\n"
                await asyncio.sleep(1)
        return StreamingResponse(numbers(), media_type="text/event-stream")

    @app.websocket("/ws")
    async def echo(websocket: WebSocket):
        await websocket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await websocket.send_text(await websocket.receive_text())

    return app
"""

PREFIXED = """
from fastapi import FastAPI

app = FastAPI(root_path="/api")

@app.get("/items/{number}")
async def item(number: int):
    return {"number": number}
"""

SETTINGS = """
SECRET_KEY = "for the test"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "project.urls"
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
"""

URLS = """
from django.http import JsonResponse
from django.urls import path

async def show(request):
    return JsonResponse({"client": request.META["REMOTE_ADDR"], "scheme": request.scheme, "url": request.build_absolute_uri(),
                         "body": len(request.body)})

urlpatterns = [path("show/", show)]
"""

ASGI = """
import os
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
application = get_asgi_application()
"""


def write(directory: Path, requirements: str, **files: str) -> dict[str, str]:
    """Write an app's source, and return its key ``source``."""
    texts = {"requirements.txt": requirements} | {f"{name}.py": text for name, text in files.items()}
    for name, text in texts.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return {"path": str(directory)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("asgi")


@pytest.fixture(scope="module")
def entries(directory: Path) -> dict[str, dict[str, Any]]:
    common = {"processes": 1, "drain": 5}
    project = {"project/settings": SETTINGS, "project/urls": URLS, "project/asgi": ASGI, "project/__init__": ""}
    return {
        "fast": {
            **common,
            "source": write(directory / "fast", "fastapi==0.115.*\n", shop=FASTAPI),
            "run": {"asgi": "shop:make_app"},
            "domains": [NAME],
            "health": {"path": "/whoami"},
        },
        "django": {
            **common,
            "source": write(directory / "django", "django==5.2.*\n", **project),
            "run": {"asgi": "project.asgi:application"},
            "domains": [SITE],
            "health": {"path": "/show/"},
            "upload_size": "1k",
        },
        "prefixed": {
            **common,
            "source": write(directory / "prefixed", "fastapi==0.115.*\nuvicorn[standard]\n", api=PREFIXED),
            "run": {"asgi": "api:app"},
            "domains": [SITE],
            "prefix": "/api/",
            "health": {"path": "/api/items/1"},
        },
    }


def with_variable(entries: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Return ``tornado_apps`` with an environment variable of the FastAPI app."""
    return apps(**entries | {"fast": entries["fast"] | {"env": {name: "1"}}})


@pytest.fixture(scope="module", autouse=True)
def provisioned(directory: Path, entries: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Deploy the apps, and remove them after the module."""
    expect_success(deploy(",".join(entries), HOST, directory, apps(**entries)))
    yield
    expect_success(run_playbook("playbooks/remove.yml", HOST, "-e", "app=prefixed,fast,django", *extra_vars(directory, apps())))


@pytest.fixture(scope="module")
def host() -> Host:
    return hosts(HOST)[HOST]


def test_deploy_and_rollback_lose_no_request(host: Host, directory: Path, entries: dict[str, dict[str, Any]]) -> None:
    site = Site(address(host), NAME)
    first = site.get("/whoami").json["release"]
    changed = with_variable(entries, "CHANGED")
    with Load(address(host), host=NAME, connections=10, polls=2, poll="/sleep?seconds=2") as load:
        expect_success(deploy("fast", HOST, directory, changed))
        assert site.get("/whoami").json["release"] != first
        expect_success(run_playbook("playbooks/rollback.yml", HOST, "-e", "app=fast", *extra_vars(directory, changed)))
    assert site.get("/whoami").json["release"] == first
    shown = "\n".join(table({"deploy and rollback": load.result}))
    assert (load.result.failed, load.result.lost, load.result.doubled, load.result.cut) == (0, 0, 0, 0), shown
    assert load.result.posted > 10, shown
    assert load.result.closes.keys() == {"1012"}, shown


def test_exception_in_the_lifespan_startup_is_in_the_message(directory: Path, entries: dict[str, dict[str, Any]]) -> None:
    status, output = deploy("fast", HOST, directory, with_variable(entries, "BROKEN"))
    assert status != 0
    assert "the lifespan startup of shop:make_app failed: RuntimeError: no database" in output


def test_client_and_scheme_cannot_be_spoofed(host: Host) -> None:
    for name, path in ((NAME, "/whoami"), (SITE, "/show/")):
        site = Site(address(host), name)
        found = site.get(path, **SPOOFED).json
        assert (found["client"], found["scheme"]) == (site.client_address, "http")
    assert Site(address(host), SITE).get("/show/").json["url"] == f"http://{SITE}/show/"


def test_log_line_ends_with_the_request_id(host: Host) -> None:
    response = Site(address(host), NAME).get("/whoami")
    suffix = f" request={response.headers['x-request-id']}"
    lines = eventually(lambda: host.run("grep -hF %s /var/log/fast/[ab]-[01].log", suffix).stdout.splitlines())
    assert any(" 200 GET /whoami " in line and line.endswith(suffix) for line in lines), lines


def test_events_are_not_buffered(host: Host) -> None:
    with Site(address(host), NAME).connect() as connection:
        connection.sendall(f"GET /events HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        received = b""
        while b"data: 0" not in received:
            received += connection.recv(9999)
        assert b"data: 1" not in received
        assert b"x-accel-buffering" not in received.lower()


def test_larger_uploads_are_refused(host: Host) -> None:
    site = Site(address(host), SITE)
    assert site.request("POST", "/show/", body=b"x" * 1000).json["body"] == 1000
    assert site.request("POST", "/show/", body=b"x" * 2000).status == 413


def test_app_below_a_prefix_declares_its_root_path(host: Host) -> None:
    site = Site(address(host), SITE)
    assert site.get("/api/items/7").json == {"number": 7}
    assert b'"/api/openapi.json"' in site.get("/api/docs").body or b"'/api/openapi.json'" in site.get("/api/docs").body
    assert "/items/{number}" in site.get("/api/openapi.json").json["paths"]
