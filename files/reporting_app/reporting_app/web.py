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
    """A client of the REST API at ``url``, with a timeout in seconds."""

    def __init__(self, url: str, timeout: float) -> None:
        """Create the client without sending a request."""
        self.url = url
        self.timeout = timeout
        self.opener = urllib.request.build_opener()

    def get(self, path: str, **query: str) -> Any:
        """Fetch JSON from ``path``; abort with 404 if it does not exist, with 502 if the API fails."""
        url = f"{urllib.parse.urljoin(self.url, path)}?{urllib.parse.urlencode(query)}"
        try:
            with self.opener.open(url, timeout=self.timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            abort(404 if error.code == 404 else 502, f"the API returned status {error.code} for {path}")
        except (OSError, ValueError) as error:
            abort(502, f"the API at {self.url} is unavailable: {error}")


def create_app(config: Path = CONFIG, api_url: str | None = None) -> Flask:
    """Create the application.

    :arg config: a TOML file.
    :arg api_url: URL of the API with a trailing slash; defaults to ``REST_API_URL``, or that of ``python -m rest_api``.
    """
    app = Flask(__name__)
    app.config.update({name.upper(): value for name, value in tomllib.loads(config.read_text()).items()})
    url = api_url or os.environ.get("REST_API_URL", "http://127.0.0.1:8001/api/")
    api = Api(url, app.config["API_TIMEOUT"])

    @app.get("/")
    def runs() -> str:
        """List the runs, optionally of one status."""
        status = request.args.get("status", "")
        found = api.get("runs", **({"status": status} if status else {}))
        return render_template("runs.html", runs=found["runs"], total=found["total"], status=status)

    @app.get("/runs/<run_id>")
    def run(run_id: str) -> str:
        """Show one run."""
        return render_template("run.html", run=api.get(f"runs/{urllib.parse.quote(run_id, safe='')}"))

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Report that the process serves, and its release; the API has its own health check."""
        return {"status": "ok", "release": os.environ.get("TORNADO_RELEASE", "")}

    @app.errorhandler(HTTPException)
    def error(exception: HTTPException) -> tuple[str, int]:
        """Return an error page; log why the API failed."""
        status = exception.code or 500
        if status == 502:
            app.logger.warning("%s %s: %s", request.method, request.path, exception.description)
        return render_template("error.html", name=exception.name, status=status), status

    return app


app = create_app()
