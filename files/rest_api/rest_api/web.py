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
LONGEST_SLEEP = 60.0

#: Addresses arrive whole, as nginx gets them: the prefix is the app's own.
api = Blueprint("api", __name__, url_prefix="/api")


@api.get("/")
def index() -> dict[str, str]:
    """Tell what there is."""
    return {"runs": url_for("api.runs")}


@api.get("/healthz")
def healthz() -> dict[str, str]:
    """Tell that the process serves, and which release."""
    return {"status": "ok", "release": os.environ.get("TORNADO_RELEASE", "")}


@api.get("/runs")
def runs() -> dict[str, Any]:
    """Return the first runs, of one ``status`` if it is given, and how many there are."""
    status = request.args.get("status")
    found = [run for run in current_app.config["RUNS"] if status in (None, run["status"])]
    return {"runs": found[: current_app.config["PAGE_SIZE"]], "total": len(found)}


@api.get("/runs/<run_id>")
def run(run_id: str) -> dict[str, Any]:
    """Return one run."""
    found = next((run for run in current_app.config["RUNS"] if run["id"] == run_id), None)
    if found is None:
        abort(404, f"there is no run {run_id}")
    return dict(found)


@api.get("/sleep")
def sleep() -> dict[str, Any]:
    """Keep a thread busy for ``seconds``, as a slow query does; return who did."""
    seconds = request.args.get("seconds", 1.0, type=float)
    if not 0 <= seconds <= LONGEST_SLEEP:
        abort(400, f"seconds must be a number from 0 to {LONGEST_SLEEP:g}")
    time.sleep(seconds)
    return {"process": os.environ.get("TORNADO_PROCESS", ""), "pid": os.getpid()}


@api.get("/fail")
def fail() -> dict[str, Any]:
    """Fail, to show what the log says of that."""
    raise RuntimeError("asked to fail")


def error(found: HTTPException) -> tuple[dict[str, Any], int]:
    """Answer an error as JSON; what was raised is in the log only."""
    status = found.code or 500
    return {"error": {"status": status, "message": found.description}}, status


def create_app(config: Path = CONFIG) -> Flask:
    """Make the application, with the settings of ``config``, a TOML file."""
    app = Flask(__name__)
    app.config.update({name.upper(): value for name, value in tomllib.loads(config.read_text()).items()})
    app.register_blueprint(api)
    app.register_error_handler(HTTPException, error)
    return app


app = create_app()
