"""Data that outlive releases: a Flask app with SQLite in its instance directory and uploads that nginx serves."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.remote import Response, Site, address, apps, deploy, expect_success, extra_vars, run_playbook

HOST = "debian12"
NAME = "notes.test"
SHARED = "/srv/notes/shared"

WEB = """
import sqlite3
from pathlib import Path

from flask import Flask, jsonify, request

app = Flask(__name__)
HERE = Path(__file__).parent


def database():
    connection = sqlite3.connect(Path(app.instance_path, "notes.sqlite3"))
    connection.execute("pragma journal_mode = wal")
    connection.execute("create table if not exists notes (text)")
    return connection


@app.get("/")
def notes():
    with database() as connection:
        return jsonify(version="VERSION", notes=[row[0] for row in connection.execute("select text from notes")])


@app.post("/notes")
def add():
    with database() as connection:
        connection.execute("insert into notes values (?)", [request.get_data(as_text=True)])
    with sqlite3.connect(HERE / "log.sqlite3") as log:
        log.execute("create table if not exists lines (text)")
        log.execute("insert into lines values (?)", [request.get_data(as_text=True)])
    return "", 201


@app.post("/upload/<path:name>")
def upload(name):
    path = HERE / "media" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(request.get_data())
    return "", 201
"""

MIGRATE = """
import pathlib

assert pathlib.Path("media/welcome.txt").read_text() == "welcome"
pathlib.Path("media/migrated.txt").write_text("migrated")
"""

#: A package with an extension in C, which a build without a compiler cannot install.
EXTENSION = {
    "pyproject.toml": '[build-system]\nrequires = ["setuptools==80.9.0"]\nbuild-backend = "setuptools.build_meta"\n',
    "setup.py": "from setuptools import Extension, setup\n"
    "setup(name='answer', version='1', ext_modules=[Extension('answer', ['answer.c'])])\n",
    "answer.c": """#include <Python.h>
static PyObject *value(PyObject *self, PyObject *args) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"value", value, METH_NOARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "answer", "", -1, methods};
PyMODINIT_FUNC PyInit_answer(void) { return PyModule_Create(&module); }
""",
}


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


class Notes:
    """The app, its source and its entry."""

    def __init__(self, directory: Path) -> None:
        files = {"requirements.txt": "flask==3.1.2\n", "media/welcome.txt": "welcome", "migrate.py": MIGRATE}
        files |= {"static/css/site.css": "body {}", "static/uploads/.keep": ""}
        self.directory = directory
        self.source = write(directory / "notes", files)
        (self.source / "static/main.css").symlink_to("css/site.css")
        self.keys: dict[str, Any] = {
            "source": {"path": str(self.source)},
            "run": {"wsgi": "web:app"},
            "domains": [NAME],
            "processes": 1,
            "drain": 5,
            "static": {},
            "shared": {
                "instance": {},
                "log.sqlite3": {},
                "media": {"url": "/media/"},
                "static/uploads": {"url": "/static/uploads/", "backup": False},
            },
            "hooks": {"before_start": "python migrate.py"},
        }

    def deploy(self, version: str, **keys: Any) -> tuple[int, str]:
        write(self.source, {"web.py": WEB.replace("VERSION", version)})
        return deploy("notes", HOST, self.directory, apps(notes=self.keys | keys))

    def playbook(self, name: str, *options: str) -> tuple[int, str]:
        return run_playbook(f"playbooks/{name}", HOST, *extra_vars(self.directory, apps(notes=self.keys)), *options)


@pytest.fixture(scope="module")
def host(hosts: dict[str, Host]) -> Host:
    return hosts[HOST]


@pytest.fixture(scope="module")
def site(host: Host) -> Site:
    return Site(address(host), NAME)


@pytest.fixture(scope="module", autouse=True)
def notes(tmp_path_factory: pytest.TempPathFactory, host: Host) -> Iterator[Notes]:
    """Deploy the app; remove it after the module."""
    notes = Notes(tmp_path_factory.mktemp("notes"))
    expect_success(notes.deploy("one"))
    yield notes
    expect_success(run_playbook("playbooks/remove.yml", HOST, "-e", "app=notes", *extra_vars(notes.directory, apps())))
    assert host.run("test -e /srv/notes").rc != 0
    assert host.run("test -d /var/backups/apps/notes").rc == 0, "backups outlive the app"


def post(site: Site, path: str, body: bytes) -> None:
    assert site.request("POST", path, body).status == 201


def seen(site: Site) -> tuple[str, list[str]]:
    found = site.get().json
    return found["version"], found["notes"]


def test_data_survive_deploys_rollbacks_and_restarts(host: Host, notes: Notes, site: Site) -> None:
    post(site, "/notes", b"first")
    write(notes.source, {"media/welcome.txt": "changed in the source"})
    expect_success(notes.deploy("two"))
    assert seen(site) == ("two", ["first"])
    post(site, "/notes", b"second")
    expect_success(notes.playbook("rollback.yml", "-e", "app=notes"))
    assert seen(site) == ("one", ["first", "second"])
    expect_success(notes.playbook("restart.yml", "-e", "app=notes"))
    assert seen(site) == ("one", ["first", "second"])
    assert site.get("/media/welcome.txt").body == b"welcome", "the content of the first release"
    assert site.get("/media/migrated.txt").body == b"migrated", (
        "a hook finds and changes the data before the first process starts"
    )
    lines = host.check_output(
        "python3 -c %s",
        f"import sqlite3; print(sqlite3.connect('{SHARED}/log.sqlite3').execute('select text from lines').fetchall())",
    )
    assert lines == "[('first',), ('second',)]", "a shared file"


def test_uploads_are_served_by_nginx_without_scripts(site: Site) -> None:
    post(site, "/upload/a/page.html", b"<script>alert(1)</script>")
    post(site, "/upload/photo.jpg", b"\xff\xd8\xff")
    page, photo = site.get("/media/a/page.html"), site.get("/media/photo.jpg")
    assert (page.status, page.body) == (200, b"<script>alert(1)</script>")
    assert photo.headers["content-type"] == "image/jpeg"
    for response in (page, photo):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-security-policy"] == "script-src 'none'"
        assert "x-release" not in response.headers, "not from the app"
    assert {path: site.get(path).status for path in ("/media/", "/media/a/", "/media/missing", "/static/uploads/.keep")} == {
        "/media/": 403,
        "/media/a/": 403,
        "/media/missing": 404,
        "/static/uploads/.keep": 404,
    }


def test_links_in_uploads_are_not_followed(host: Host, site: Site) -> None:
    post(site, "/notes", b"private")
    targets = {"host": "/etc", "file": "/etc/hostname", "own": f"{SHARED}/instance", "release": "/srv/notes/live/release"}
    for name, target in targets.items():
        host.check_output("runuser -u notes -- ln -s %s %s", target, f"{SHARED}/media/{name}")
    host.check_output("runuser -u notes -- mkfifo %s", f"{SHARED}/media/pipe")

    def statuses() -> dict[str, int]:
        paths = ("host/hostname", "file", "own/notes.sqlite3", "release/release.json", "release/public/static/main.css", "pipe")
        return {path: site.get(f"/media/{path}").status for path in paths}

    assert all(status in (403, 404) for status in statuses().values()), statuses()
    host.check_output("runuser -u notes -- mv %s %s", f"{SHARED}/media", f"{SHARED}/aside")
    host.check_output("runuser -u notes -- ln -s /etc %s", f"{SHARED}/media")
    assert site.get("/media/hostname").status in (403, 404), "the directory itself is a link"
    host.check_output("runuser -u notes -- sh -c %s", f"rm {SHARED}/media && mv {SHARED}/aside {SHARED}/media")
    assert site.get("/media/welcome.txt").status == 200
    for other in ("www-data", "sample"):
        assert host.run("runuser -u %s -- cat %s", other, f"{SHARED}/instance/notes.sqlite3").rc != 0, other
    assert host.run("runuser -u www-data -- touch %s", f"{SHARED}/media/new").rc != 0, "nginx cannot write"


def test_links_among_static_files_are_served(host: Host, site: Site) -> None:
    assert site.get("/static/main.css").body == site.get("/static/css/site.css").body == b"body {}"
    host.check_output("runuser -u notes -- sh -c %s", f"echo photo > {SHARED}/static/uploads/photo.txt")
    assert site.get("/static/uploads/photo.txt").body == b"photo\n"


def test_backup_is_restored_by_name_or_file(host: Host, notes: Notes, site: Site, tmp_path: Path) -> None:
    post(site, "/notes", b"before the backup")
    post(site, "/upload/photo.jpg", b"\xff\xd8\xff")
    before = seen(site)
    expect_success(notes.playbook("backup.yml", "-e", "app=notes", "-e", "keep=3", "-e", f"fetch={tmp_path}"))
    [fetched] = tmp_path.glob(f"notes-{HOST}-*.tar")
    assert fetched.stat().st_mode & 0o077 == 0
    with tarfile.open(fetched) as packed:
        names = set(packed.getnames())
    assert {"instance/notes.sqlite3", "log.sqlite3", "media/photo.jpg"} <= names
    assert not any(name.startswith("static") or name.endswith(("-wal", "-shm")) for name in names), names
    post(site, "/notes", b"after the backup")
    post(site, "/upload/after.txt", b"after")
    restore = ("restore.yml", "-e", "app=notes", "-e", f"host={HOST}")
    status, output = notes.playbook(*restore, "-e", "shared=latest")
    assert status != 0
    assert re.search(r"has data in instance, log\.sqlite3, media; set force=true", " ".join(output.split())), output
    expect_success(notes.playbook(*restore, "-e", "shared=latest", "-e", "force=true"))
    assert seen(site) == before
    assert site.get("/media/photo.jpg").body == b"\xff\xd8\xff"
    assert site.get("/media/after.txt").status == 404
    post(site, "/upload/after.txt", b"after")
    assert site.get("/media/after.txt").body == b"after", "nginx reads new files in the restored directory"
    post(site, "/notes", b"after the restore")
    expect_success(notes.playbook(*restore, "-e", f"shared={fetched}", "-e", "force=true"))
    assert seen(site) == before
    assert host.run("test -e /srv/notes/maintenance").rc != 0
    assert host.check_output("find %s -name '.funnel*'", SHARED) == ""


def test_unknown_package_is_reported_before_anything_changes(notes: Notes, site: Site) -> None:
    status, output = notes.deploy("three", packages=["jq", "no-such-package"])
    assert status != 0
    message = "tornado_apps.notes.packages: no package source of this host has no-such-package"
    assert message in " ".join(output.split()), output
    assert "nothing was changed" in output
    assert seen(site)[0] == "one"


def test_extension_is_built_with_the_packages_that_the_failed_build_names(host: Host, notes: Notes, site: Site) -> None:
    write(notes.source, {f"answer/{name}": text for name, text in EXTENSION.items()})
    write(notes.source, {"requirements.txt": "flask==3.1.2\n./answer\n"})
    status, output = notes.deploy("four")
    assert status != 0
    message = r"tornado_apps\.notes\.packages: add build-essential, python3-dev, which the build lacks"
    assert re.search(message, " ".join(output.split())), output
    assert seen(site)[0] == "one"
    expect_success(notes.deploy("four", packages=["build-essential", "python3-dev"]))
    assert seen(site)[0] == "four"
    assert host.check_output("/srv/notes/current/venv/bin/python -c 'import answer; print(answer.value())'") == "42"


def test_package_source_takes_further_requirements(host: Host, notes: Notes) -> None:
    """Gunicorn, which serves the app, is not a dependency of the package."""
    entry = {
        "source": {"package": "bottle", "version": "0.13.4", "requirements": ["gunicorn==23.0.0"]},
        "run": {"command": "gunicorn --bind unix:{socket} wsgiref.simple_server:demo_app"},
        "domains": ["packaged.test"],
        "processes": 1,
        "shared": ["data"],
    }
    expect_success(deploy("packaged", HOST, notes.directory, apps(notes=notes.keys, packaged=entry)))
    response: Response = Site(address(host), "packaged.test").get()
    assert (response.status, response.body[:12]) == (200, b"Hello world!")
    manifest = json.loads(host.check_output("cat /srv/packaged/current/release.json"))
    assert manifest["revision"] == "bottle==0.13.4"
    assert host.check_output("readlink -f /srv/packaged/current/src/data") == "/srv/packaged/shared/data"
    remaining = extra_vars(notes.directory, apps(notes=notes.keys))
    expect_success(run_playbook("playbooks/remove.yml", HOST, "-e", "app=packaged", *remaining))
