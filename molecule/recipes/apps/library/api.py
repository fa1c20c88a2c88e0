"""Books with covers: typed bodies, uploads, a websocket that announces new books, and a database."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, UploadFile, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse
from pydantic import BaseModel

VERSION = 1
DATA = Path(__file__).parent / "data"


class Book(BaseModel):
    title: str
    year: int


def connection() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(DATA / "library.db", check_same_thread=False)) as database:
        yield database


Database = Annotated[sqlite3.Connection, Depends(connection)]


@contextlib.asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    with contextlib.closing(sqlite3.connect(DATA / "library.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE IF NOT EXISTS book (title, year)")
    yield


app = FastAPI(title="Library", version=str(VERSION), lifespan=lifespan)


@app.get("/books")
def books(database: Database) -> list[Book]:
    return [Book(title=title, year=year) for title, year in database.execute("SELECT title, year FROM book ORDER BY year")]


@app.post("/books", status_code=201)
def add(book: Book, database: Database) -> Book:
    with database:  # commits before the response is sent, unlike a dependency
        database.execute("INSERT INTO book VALUES (?, ?)", [book.title, book.year])
    return book


@app.put("/covers/{number}")
async def upload(number: int, file: UploadFile) -> dict[str, int]:
    content = await file.read()
    (DATA / f"{number}.cover").write_bytes(content)
    return {"bytes": len(content)}


@app.get("/covers/{number}")
async def cover(number: int) -> FileResponse:
    path = DATA / f"{number}.cover"
    if not path.exists():
        raise HTTPException(404)
    return FileResponse(path)


@app.websocket("/count")
async def count(websocket: WebSocket) -> None:
    await websocket.accept()
    with contextlib.suppress(WebSocketDisconnect), contextlib.closing(sqlite3.connect(DATA / "library.db")) as database:
        while True:
            await websocket.send_json(database.execute("SELECT count(*) FROM book").fetchone()[0])
            await asyncio.sleep(0.5)
