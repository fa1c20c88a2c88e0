"""A guestbook with sessions, a form, and server-sent events of new entries."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

VERSION = 1
ENTRIES = Path(__file__).parent / "data/entries.jsonl"


def entries() -> list[list[str]]:
    return [json.loads(line) for line in ENTRIES.read_text().splitlines()] if ENTRIES.exists() else []


async def index(request: Request) -> Response:
    return JSONResponse({"version": VERSION, "user": request.session.get("name"), "entries": entries()})


async def sign(request: Request) -> Response:
    async with request.form() as form:
        request.session["name"] = form["name"]
        line = json.dumps([form["name"], form["text"]])
    with ENTRIES.open("a") as file:
        file.write(f"{line}\n")
    return RedirectResponse("/", status_code=303)


async def events(_request: Request) -> Response:
    async def stream() -> AsyncIterator[str]:
        seen = 0
        while True:
            for entry in entries()[seen:]:
                seen += 1
                yield f"data: {json.dumps(entry)}\n\n"
            await asyncio.sleep(0.2)

    return StreamingResponse(stream(), media_type="text/event-stream")


async def latest(websocket: WebSocket) -> None:
    await websocket.accept()
    async for _ in websocket.iter_text():
        await websocket.send_json(entries()[-1])


app = Starlette(
    routes=[
        Route("/", index),
        Route("/sign", sign, methods=["POST"]),
        Route("/events", events),
        WebSocketRoute("/latest", latest),
    ],
    middleware=[Middleware(SessionMiddleware, secret_key=os.environ["SECRET_KEY"])],
)
