"""The recipes of the documentation: their entries, a project that deploys them, and a user of an app."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from base64 import b64encode
from collections.abc import Mapping
from http.client import HTTPConnection
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml
from testinfra.host import Host

from tests.support.pages import blocks
from tests.support.remote import ROOT, Response, Site

RECIPES = sorted(path for path in (ROOT / "docs/recipes").glob("*.md") if path.name != "README.md")
SOURCES = ROOT / "molecule/recipes/apps"


def recipe(page: Path) -> str:
    """Return the entry of a page, as YAML."""
    [text] = [block for block in blocks(page, "yaml") if block.startswith("tornado_apps:\n")]
    return text


def entries() -> dict[str, dict[str, Any]]:
    """Return the entries of all pages by the name of their app."""
    return {name: keys for page in RECIPES for name, keys in yaml.safe_load(recipe(page))["tornado_apps"].items()}


class User:
    """A user of a site, whose browser keeps cookies."""

    def __init__(self, site: Site) -> None:
        """Start without cookies."""
        self.site = site
        self.cookies: dict[str, str] = {}

    @property
    def headers(self) -> dict[str, str]:
        """The header with the cookies."""
        return {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())} if self.cookies else {}

    def get(self, path: str = "/", **headers: str) -> Response:
        """Request a page."""
        return self.request("GET", path, headers=headers)

    def post(self, path: str, *, files: Mapping[str, tuple[str, bytes]] | None = None, **fields: str) -> Response:
        """Send a form, with ``files`` as a multipart form."""
        if files is None:
            return self.request("POST", path, urlencode(fields).encode(), {"Content-Type": "application/x-www-form-urlencoded"})
        kind, body = multipart(fields, files)
        return self.request("POST", path, body, {"Content-Type": kind})

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Response:
        """Send a request with the cookies, and keep those of the response."""
        connection = HTTPConnection(self.site.address)
        try:
            connection.sock = self.site.connect()
            connection.request(method, path, body, {"Host": self.site.host, **self.headers, **(headers or {})})
            response = connection.getresponse()
            for line in response.headers.get_all("Set-Cookie", []):
                self.cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
            received = {name.lower(): value for name, value in response.getheaders()}
            return Response(response.status, received, response.read())
        finally:
            connection.close()


def multipart(fields: Mapping[str, str], files: Mapping[str, tuple[str, bytes]]) -> tuple[str, bytes]:
    """Return the content type and the body of a form with files, each with its name and content."""
    boundary = uuid.uuid4().hex
    parts = [(f'name="{name}"', value.encode()) for name, value in fields.items()]
    parts += [(f'name="{name}"; filename="{file}"', content) for name, (file, content) in files.items()]
    texts = [f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + body + b"\r\n" for head, body in parts]
    return f"multipart/form-data; boundary={boundary}", b"".join(texts) + f"--{boundary}--\r\n".encode()


class Project:
    """A project beside the sources of its apps, as in the pages."""

    def __init__(self, directory: Path, hosts: Mapping[str, dict[str, Any]]) -> None:
        """Copy the sources, and write the inventory with the variables of each of ``hosts``."""
        self.sources = directory
        self.directory = directory / "project"
        shutil.copytree(SOURCES, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        self.directory.mkdir()
        self.users = {
            app: User(Site(str(variables["ansible_host"]), keys["domains"][0]))
            for variables in hosts.values()
            for app, keys in variables["tornado_apps"].items()
        }
        # The hosts trust the additional CA certificates of this machine, but Node has its own.
        (directory / "ticker/.npmrc").write_text("cafile=/etc/ssl/certs/ca-certificates.crt\n")
        self.hosts = hosts
        self.write_inventory()

    def write_inventory(self) -> None:
        """Write the inventory with the variables of the hosts."""
        inventory = {"app_hosts": {"hosts": {name: dict(variables) for name, variables in self.hosts.items()}}}
        (self.directory / "hosts.yml").write_text(yaml.safe_dump(inventory, sort_keys=False))

    def run(self, playbook: str, *options: str) -> str:
        """Run a playbook of the collection, and return its output."""
        command = ["ansible-playbook", str(ROOT / playbook), "-i", "hosts.yml", *options]
        environ = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
        done = subprocess.run(command, cwd=self.directory, env=environ, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, "\n".join((done.stdout + done.stderr).splitlines()[-80:])
        return done.stdout

    def release(self, app: str, version: int) -> None:
        """Change the source of an app to another version."""
        files = [path for path in (self.sources / app).rglob("*.*") if path.suffix in (".py", ".js", ".yml")]
        changed = [(path, re.sub(r"(VERSION = |title: Books )\d+", rf"\g<1>{version}", path.read_text())) for path in files]
        changed = [(path, text) for path, text in changed if text != path.read_text()]
        assert len(changed) == bool(files)
        for path, text in changed or [(self.sources / app / "VERSION", str(version))]:
            path.write_text(text)


def serve_repository(host: Host, source: Path, key: str) -> None:
    """Serve the source of an app as ``git@HOST:NAME.git`` with the tag v1.0.0, readable with a deploy key only."""
    host.check_output(
        "id git || useradd --home-dir /srv/git --shell /usr/bin/git-shell git; "
        "install -d -o git -g git /srv/git && install -d -m 700 -o git -g git /srv/git/.ssh && "
        "echo %s > /srv/git/.ssh/authorized_keys && chown git: /srv/git/.ssh/authorized_keys",
        key,
    )
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", str(source)], check=True, timeout=30)
    publish(host, source, "v1.0.0")


def publish(host: Host, source: Path, tag: str) -> None:
    """Commit the changes of a source, and publish them with a tag in the repository of :func:`serve_repository`."""
    bundle = source.with_suffix(".bundle")
    for command in (
        ["add", "."],
        ["-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "--quiet", f"-m{tag}"],
        ["tag", tag],
        ["bundle", "create", "--quiet", str(bundle), "HEAD", "main", "--tags"],
    ):
        subprocess.run(["git", "-C", str(source), *command], check=True, capture_output=True, timeout=30)
    host.check_output("printf %s | base64 -d > /srv/bundle", b64encode(bundle.read_bytes()).decode())
    repository = f"/srv/git/{source.name}.git"
    host.check_output("rm -rf %s && git clone --quiet --bare /srv/bundle %s && chown -R git: %s", *[repository] * 3)
