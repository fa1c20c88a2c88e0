"""An example of a resource: documents of a title and a text, in the database."""

from __future__ import annotations

import re
from typing import Any

from tornado.web import HTTPError

from sample_app.errors import NO_DATABASE, UnavailableError
from sample_app.handlers import BaseHandler

KEY = "[0-9a-f]{24}"
"""What an id looks like."""

LONGEST = {"title": 200, "text": 10_000}


class DocumentsBase(BaseHandler):
    """What both handlers need."""

    cors = True

    def prepare(self) -> None:
        """Take the data access object, which is there if there is a database."""
        if self.services.documents is not None:
            self.documents = self.services.documents
        elif self.request.method != "OPTIONS":
            raise UnavailableError(NO_DATABASE)

    def document(self) -> dict[str, str]:
        """Return the document that the client has sent. Raises HTTPError 400."""
        body = {"text": ""} | self.body()
        if unknown := body.keys() - LONGEST.keys():
            raise HTTPError(400, f"unknown: {sorted(unknown)}", reason=f"a document has no other keys than {', '.join(LONGEST)}")
        for name, longest in LONGEST.items():
            if not isinstance(body.get(name), str) or len(body[name]) > longest:
                raise HTTPError(400, reason=f"{name} must be a text of at most {longest} characters")
        if not body["title"].strip():
            raise HTTPError(400, reason="title must not be empty")
        return body


class DocumentsHandler(DocumentsBase):
    """All documents."""

    async def get(self) -> None:
        """List them, oldest first: ``limit`` at most, those after the id ``after``."""
        after = self.get_query_argument("after", None)
        if after is not None and re.fullmatch(KEY, after) is None:
            raise HTTPError(400, reason="after must be the id of a document")
        self.write({"documents": await self.documents.list(limit=self.whole_number("limit", 100, 1000), after=after)})

    async def post(self) -> None:
        """Add one; the answer tells its id."""
        document = self.document()
        key = await self.documents.insert(document)
        self.set_status(201)
        self.set_header("Location", f"/documents/{key}")
        self.write({"id": key} | document)


class DocumentHandler(DocumentsBase):
    """One document."""

    async def get(self, key: str) -> None:
        """Answer with it."""
        self.write(self.found(await self.documents.get(key)))

    async def put(self, key: str) -> None:
        """Replace it."""
        document = self.document()
        self.found(await self.documents.replace(key, document))
        self.write({"id": key} | document)

    async def delete(self, key: str) -> None:
        """Remove it."""
        self.found(await self.documents.delete(key))
        self.set_status(204)

    def found(self, result: Any) -> Any:
        """Return what was found. Raises HTTPError 404 if there is no such document."""
        if not result:
            raise HTTPError(404, reason="there is no such document")
        return result
