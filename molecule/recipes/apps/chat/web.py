"""A chat: people log in with a name, and all of them see each message, also those of before the last deploy."""

from __future__ import annotations

import os
import sqlite3

import tornado.web
import tornado.websocket

VERSION = 1


class Base(tornado.web.RequestHandler):
    def get_current_user(self) -> str | None:
        name = self.get_signed_cookie("name")
        return name.decode() if name else None


class Login(Base):
    def post(self) -> None:
        self.set_signed_cookie("name", self.get_argument("name"))
        self.redirect("/")


class Main(Base):
    def get(self) -> None:
        self.write({"version": VERSION, "user": self.current_user})


class Room(tornado.websocket.WebSocketHandler, Base):
    def initialize(self, members: set[Room], history: sqlite3.Connection) -> None:
        self.members = members
        self.history = history

    def open(self) -> None:
        if not self.current_user:
            self.close(4401, "log in first")
            return
        self.members.add(self)
        for (line,) in self.history.execute("SELECT line FROM message ORDER BY rowid"):
            self.write_message(line)

    def on_message(self, message: str | bytes) -> None:
        line = f"{self.current_user}: {message!s}"
        with self.history:
            self.history.execute("INSERT INTO message VALUES (?)", [line])
        for member in self.members:
            member.write_message(line)

    def on_close(self) -> None:
        self.members.discard(self)


def make_app() -> tornado.web.Application:
    history = sqlite3.connect("history.db")
    history.execute("CREATE TABLE IF NOT EXISTS message (line)")
    room = {"members": set(), "history": history}
    routes = [("/", Main), ("/login", Login), ("/room", Room, room)]
    return tornado.web.Application(routes, cookie_secret=os.environ["COOKIE_SECRET"])
