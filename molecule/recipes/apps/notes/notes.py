"""Notes with attachments: a session, a database by Flask-SQLAlchemy, and uploads."""

from __future__ import annotations

import os
from pathlib import Path

from flask import Flask, abort, jsonify, redirect, request, session
from flask_sqlalchemy import SQLAlchemy
from werkzeug.utils import secure_filename

VERSION = 1
MEDIA = Path(__file__).parent / "media"

database = SQLAlchemy()


class Note(database.Model):
    id = database.Column(database.Integer, primary_key=True)
    author = database.Column(database.String, nullable=False)
    text = database.Column(database.String, nullable=False)


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(SECRET_KEY=os.environ["SECRET_KEY"], SQLALCHEMY_DATABASE_URI="sqlite:///notes.db")
    database.init_app(app)

    @app.cli.command("init-db")
    def init_db() -> None:
        database.create_all()

    @app.post("/login")
    def login():
        session["name"] = request.form["name"]
        return redirect("/")

    @app.get("/")
    def index():
        notes = database.session.scalars(database.select(Note).order_by(Note.id))
        return jsonify(version=VERSION, user=session.get("name"), notes=[[note.author, note.text] for note in notes])

    @app.post("/")
    def add():
        if "name" not in session:
            abort(401)
        database.session.add(Note(author=session["name"], text=request.form["text"]))
        database.session.commit()
        return redirect("/")

    @app.post("/attachments")
    def attach():
        file = request.files["file"]
        name = secure_filename(file.filename)
        file.save(MEDIA / name)
        return redirect(f"/media/{name}")

    return app
