"""The application and its views."""

from __future__ import annotations

import os
import time
import tomllib
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, abort, current_app, request, url_for
from werkzeug.exceptions import HTTPException

CONFIG = Path(__file__).with_name("config.toml")
MAX_SLEEP = 60.0

#: Paths arrive unchanged from nginx, including the prefix.
api = Blueprint("api", __name__, url_prefix="/api")


@api.get("/")
def index() -> dict[str, str]:
    """List the resources."""
    return {"runs": url_for("api.runs")}


@api.get("/healthz")
def healthz() -> dict[str, str]:
    """Report that the process serves, and its release."""
    return {"status": "ok", "release": os.environ.get("TORNADO_RELEASE", "")}


@api.get("/runs")
def runs() -> dict[str, Any]:
    """Return the first page of runs, optionally of one ``status``, and their total number."""
    status = request.args.get("status")
    found = [run for run in current_app.config["RUNS"] if status in (None, run["status"])]
    return {"runs": found[: current_app.config["PAGE_SIZE"]], "total": len(found)}


@api.get("/runs/<run_id>")
def run(run_id: str) -> dict[str, Any]:
    """Return one run."""
    found = next((run for run in current_app.config["RUNS"] if run["id"] == run_id), None)
    if found is None:
        abort(404, f"no such run: {run_id}")
    return dict(found)


@api.get("/sleep")
def sleep() -> dict[str, Any]:
    """Block a thread for ``seconds``, as a slow query does; return the process."""
    seconds = request.args.get("seconds", 1.0, type=float)
    if not 0 <= seconds <= MAX_SLEEP:
        abort(400, f"seconds must be a number from 0 to {MAX_SLEEP:g}")
    time.sleep(seconds)
    return {"process": os.environ.get("TORNADO_PROCESS", ""), "pid": os.getpid()}


@api.get("/fail")
def fail() -> dict[str, Any]:
    """Raise an exception, to demonstrate its log lines."""
    raise RuntimeError("intentional failure")


def error(exception: HTTPException) -> tuple[dict[str, Any], int]:
    """Return an error as JSON; the exception is only logged."""
    status = exception.code or 500
    return {"error": {"status": status, "message": exception.description}}, status


def create_app(config: Path = CONFIG) -> Flask:
    """Create the application with the settings of ``config``, a TOML file."""
    app = Flask(__name__)
    app.config.update({name.upper(): value for name, value in tomllib.loads(config.read_text()).items()})
    app.register_blueprint(api)
    app.register_error_handler(HTTPException, error)
    return app


app = create_app()
