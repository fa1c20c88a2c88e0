"""An example resource: documents with a title and a text, in the database."""

from __future__ import annotations

import re
from typing import Any

from tornado.web import HTTPError

from sample_app.errors import NO_DATABASE, UnavailableError
from sample_app.handlers import BaseHandler

ID_PATTERN = "[0-9a-f]{24}"
"""Regular expression of an id."""

MAX_LENGTHS = {"title": 200, "text": 10_000}


class DocumentsBase(BaseHandler):
    """Base of both handlers."""

    cors = True

    def prepare(self) -> None:
        """Set the data access object; raises UnavailableError without a database."""
        if self.services.documents is not None:
            self.documents = self.services.documents
        elif self.request.method != "OPTIONS":
            raise UnavailableError(NO_DATABASE)

    def document(self) -> dict[str, str]:
        """Return the validated document of the request. Raises HTTPError 400."""
        body = {"text": ""} | self.body()
        if unknown := body.keys() - MAX_LENGTHS.keys():
            raise HTTPError(
                400, f"unknown: {sorted(unknown)}", reason=f"unknown key; a document has only {', '.join(MAX_LENGTHS)}"
            )
        for name, max_length in MAX_LENGTHS.items():
            if not isinstance(body.get(name), str) or len(body[name]) > max_length:
                raise HTTPError(400, reason=f"{name} must be a string of at most {max_length} characters")
        if not body["title"].strip():
            raise HTTPError(400, reason="title must not be empty")
        return body


class DocumentsHandler(DocumentsBase):
    """All documents."""

    async def get(self) -> None:
        """List up to ``limit`` documents, oldest first, optionally after the id ``after``."""
        after = self.get_query_argument("after", None)
        if after is not None and re.fullmatch(ID_PATTERN, after) is None:
            raise HTTPError(400, reason="after must be the id of a document")
        self.write({"documents": await self.documents.list(limit=self.int_argument("limit", 100, 1000), after=after)})

    async def post(self) -> None:
        """Create a document, and return it with its id."""
        document = self.document()
        key = await self.documents.insert(document)
        self.set_status(201)
        self.set_header("Location", f"/documents/{key}")
        self.write({"id": key} | document)


class DocumentHandler(DocumentsBase):
    """One document."""

    async def get(self, key: str) -> None:
        """Return the document."""
        self.write(self.require(await self.documents.get(key)))

    async def put(self, key: str) -> None:
        """Replace the document."""
        document = self.document()
        self.require(await self.documents.replace(key, document))
        self.write({"id": key} | document)

    async def delete(self, key: str) -> None:
        """Delete the document."""
        self.require(await self.documents.delete(key))
        self.set_status(204)

    def require(self, result: Any) -> Any:
        """Return the result of an operation. Raises HTTPError 404 if the document does not exist."""
        if not result:
            raise HTTPError(404, reason="no such document")
        return result
