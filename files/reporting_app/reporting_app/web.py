"""The application and its views."""

from __future__ import annotations

import json
import os
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from flask import Flask, abort, render_template, request
from werkzeug.exceptions import HTTPException

CONFIG = Path(__file__).with_name("config.toml")


class Api:
    """Reads from the REST API at ``url``, which may take ``timeout`` seconds."""

    def __init__(self, url: str, timeout: float) -> None:
        """Ask nothing yet."""
        self.url = url
        self.timeout = timeout
        self.opener = urllib.request.build_opener()

    def get(self, path: str, **query: str) -> Any:
        """Return what the API has at ``path``; what it does not have, and its own failure, are the answers 404 and 502."""
        url = f"{urllib.parse.urljoin(self.url, path)}?{urllib.parse.urlencode(query)}"
        try:
            with self.opener.open(url, timeout=self.timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            abort(404 if error.code == 404 else 502, f"the API answered {error.code} for {path}")
        except (OSError, ValueError) as error:
            abort(502, f"the API at {self.url} does not answer: {error}")


def create_app(config: Path = CONFIG, api_url: str | None = None) -> Flask:
    """Make the application.

    :arg config: a TOML file.
    :arg api_url: where the API is, with a slash at its end; ``REST_API_URL`` if unset, or that of ``python -m rest_api``.
    """
    app = Flask(__name__)
    app.config.update({name.upper(): value for name, value in tomllib.loads(config.read_text()).items()})
    url = api_url or os.environ.get("REST_API_URL", "http://127.0.0.1:8001/api/")
    api = Api(url, app.config["API_TIMEOUT"])

    @app.get("/")
    def runs() -> str:
        """List the runs, of one status if it is asked for."""
        status = request.args.get("status", "")
        found = api.get("runs", **({"status": status} if status else {}))
        return render_template("runs.html", runs=found["runs"], total=found["total"], status=status)

    @app.get("/runs/<run_id>")
    def run(run_id: str) -> str:
        """Report on one run."""
        return render_template("run.html", run=api.get(f"runs/{urllib.parse.quote(run_id, safe='')}"))

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Tell that the process serves, and which release; whether the API does is the API's own to tell."""
        return {"status": "ok", "release": os.environ.get("TORNADO_RELEASE", "")}

    @app.errorhandler(HTTPException)
    def error(found: HTTPException) -> tuple[str, int]:
        """Answer an error as a page; why the API fails is for the log."""
        status = found.code or 500
        if status == 502:
            app.logger.warning("%s %s: %s", request.method, request.path, found.description)
        return render_template("error.html", name=found.name, status=status), status

    return app


app = create_app()
