"""Builds of ordinary projects: locks, packages with a build system, git branches, migrations, and what failed builds leave."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.remote import Site, address, apps, deploy, expect_success, extra_vars, find_leftovers, python, run_playbook

HOST = "debian12"

#: Responds with the versions of distributions and where its code is.
WEB = """
import importlib.metadata, json
import {module} as imported


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    versions = {{name: importlib.metadata.version(name) for name in {names}}}
    return [json.dumps(versions | {{"from": imported.__file__}}).encode()]
"""

SCM = {
    "pyproject.toml": """
[project]
name = "scm-shop"
dynamic = ["version"]
requires-python = ">=3.11"
dependencies = ["click==8.1.7"]
scripts = { scm-version = "scm_shop:show_version" }
[build-system]
requires = ["setuptools>=64", "setuptools-scm>=8"]
build-backend = "setuptools.build_meta"
[tool.setuptools_scm]
""",
    ".python-version": "3.11\n",
    "src/scm_shop/__init__.py": """
import importlib.metadata


def show_version():
    print(importlib.metadata.version("scm-shop"))
""",
    "src/scm_shop/web.py": WEB.format(module="scm_shop", names=["scm-shop", "click", "tornado"]),
}

LOCK = """
[[package]]
name = "click"
version = "8.1.7"
groups = ["main"]
markers = "python_version >= '3.7'"
files = [{ file = "click-8.1.7-py3-none-any.whl", hash = "sha256:HASH" }]

[[package]]
name = "no-such-package"
version = "1.0"
groups = ["dev"]
files = []

[metadata]
lock-version = "2.1"
python-versions = "^3.11"
"""
CLICK_HASH = "ae74fb96c20a0277a1d615f1e4d73c8414f5a98db8b799a7931d1582f3390c28"

POETRY = {
    "pyproject.toml": '[tool.poetry]\npackage-mode = false\n[tool.poetry.dependencies]\npython = "^3.11"\nclick = "^8"\n',
    "poetry.lock": LOCK.replace("HASH", CLICK_HASH),
    "web.py": WEB.format(module="click", names=["click", "tornado"]),
}

#: A package with a command, on which an app depends by its branch, and which another app is.
LIBRARY = {
    "pyproject.toml": """
[project]
name = "moving-lib"
version = "1.0"
[project.scripts]
moving-serve = "moving_lib:serve"
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
""",
    "backend.py": """
import zipfile

FILES = {
    "moving_lib-1.0.dist-info/METADATA": "Metadata-Version: 2.1\\nName: moving-lib\\nVersion: 1.0\\n",
    "moving_lib-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\\nGenerator: a test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    "moving_lib-1.0.dist-info/entry_points.txt": "[console_scripts]\\nmoving-serve = moving_lib:serve\\n",
    "moving_lib/__init__.py": open("src/moving_lib/__init__.py").read(),
}


def build_wheel(directory, config_settings=None, metadata_directory=None):
    name = "moving_lib-1.0-py3-none-any.whl"
    names = [*FILES, "moving_lib-1.0.dist-info/RECORD"]
    with zipfile.ZipFile(f"{directory}/{name}", "w") as wheel:
        for path, text in FILES.items():
            wheel.writestr(path, text)
        wheel.writestr(names[-1], "".join(f"{path},,\\n" for path in names))
    return name
""",
    "src/moving_lib/__init__.py": """
import http.server, os, socketserver, sys

WORDS = "the first commit"


class Handler(http.server.BaseHTTPRequestHandler):
    def address_string(self):
        return "nginx"

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{sys.argv[0]} {__file__}".encode())


def serve():
    with socketserver.ThreadingUnixStreamServer(sys.argv[1], Handler) as server:
        os.chmod(sys.argv[1], 0o660)
        server.serve_forever()
""",
}
UV_LOCK = """
version = 1
revision = 3
requires-python = ">=3.11"
[[package]]
name = "moving-lib"
version = "1.0"
source = { editable = "." }
"""

PDM = {
    "pyproject.toml": """
[project]
name = "shop"
dependencies = ["click>=8"]
[dependency-groups]
test = ["no-such-package"]
[tool.pdm]
distribution = false
""",
    "pdm.lock": """
[metadata]
groups = ["default", "test"]
strategy = ["inherit_metadata"]
lock_version = "4.5.0"

[[metadata.targets]]
requires_python = ">=3.11"

[[package]]
name = "click"
version = "8.1.7"
requires_python = ">=3.7"
summary = "Composable command line interface toolkit"
groups = ["default"]
files = [{file = "click-8.1.7-py3-none-any.whl", hash = "sha256:HASH"}]

[[package]]
name = "no-such-package"
version = "1.0"
groups = ["test"]
files = []
""".replace("HASH", CLICK_HASH),
    "web.py": WEB.format(module="click", names=["click", "tornado"]),
}

#: Its requirements are in three files, a directory and a wheel.
REQUIREMENTS = {
    "requirements.txt": "-r requirements/base.txt\n-c constraints.txt\n-e ./lib\n--find-links ./wheels\nfound-lib\n",
    "requirements/base.txt": "click\n",
    "constraints.txt": "click==8.1.7\n",
    **{f"lib/{name}": text for name, text in LIBRARY.items()},
    "web.py": WEB.format(module="moving_lib", names=["click", "moving-lib", "found-lib", "tornado"]),
}

#: An app with a database that it needs to become healthy.
BRANCH = {
    "requirements.txt": "moving-lib @ git+http://127.0.0.1:8098/lib.git@main\n",
    "migrate.py": """
import os, sqlite3

with sqlite3.connect(os.environ["HOME"] + "/db") as database:
    database.execute("create table if not exists releases (id)")
    database.execute("insert into releases values (?)", (os.environ["TORNADO_RELEASE"],))
""",
    "web.py": """
import json, os, sqlite3
import moving_lib


def application(environ, start_response):
    with sqlite3.connect(os.environ["HOME"] + "/db") as database:
        releases = [row[0] for row in database.execute("select id from releases")]
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"words": moving_lib.WORDS, "releases": releases}).encode()]
""",
}

#: Serves a repository of the library over HTTP.
GIT_SERVER = """
import json, pathlib, subprocess

for name, text in json.loads({files!r}).items():
    path = pathlib.Path("/srv/git/work", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
subprocess.run(["sh", "-euc", {start!r}], check=True)
print("{{}}")
"""
COMMIT = "git add . && git -c user.name=a -c user.email=a@a.test commit -q -m a"
START = f"""
cd /srv/git/work && git init -q -b main && {COMMIT}
git clone -q --bare . /srv/git/lib.git && git -C /srv/git/lib.git update-server-info
systemd-run --quiet --collect --unit=git-files python3 -m http.server --bind 127.0.0.1 --directory /srv/git 8098
"""
MOVE_BRANCH = f"""
cd /srv/git/work && sed -i 's/the first/the second/' src/moving_lib/__init__.py && {COMMIT}
git push -q /srv/git/lib.git main && git -C /srv/git/lib.git update-server-info
"""

NAMES = ("scm", "poetry", "pdm", "listed", "uvlib", "branch")


def tree(top: Path, files: dict[str, str]) -> Path:
    """Write files to a new directory."""
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return top


def add_wheel(file: Path) -> None:
    """Write a wheel without code."""
    file.parent.mkdir()
    info = "found_lib-2.0.dist-info"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: found-lib\nVersion: 2.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


@pytest.fixture(scope="module")
def host(hosts: dict[str, Host]) -> Iterator[Host]:
    """Serve the library's repository on the host; remove it and the apps after the module."""
    host = hosts[HOST]
    assert python(host, GIT_SERVER.format(files=json.dumps(LIBRARY), start=START)) == {}
    yield host
    expect_success(run_playbook("playbooks/remove.yml", HOST, "-e", json.dumps({"app_names": NAMES})))
    host.check_output("systemctl stop git-files; rm -rf /srv/git")


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Write the projects; return their entries."""
    top = tmp_path_factory.mktemp("projects")
    sources = {"scm": SCM, "poetry": POETRY, "pdm": PDM, "listed": REQUIREMENTS, "branch": BRANCH}
    sources["uvlib"] = LIBRARY | {"uv.lock": UV_LOCK}
    kinds: dict[str, dict[str, Any]] = {
        "scm": {
            "run": {"wsgi": "scm_shop.web:application"},
            "build": {"env": {"SETUPTOOLS_SCM_PRETEND_VERSION": "4.5.6"}},
            "hooks": {"build": "scm-version"},
        },
        "uvlib": {"run": {"command": "moving-serve {socket}"}},
        "branch": {"hooks": {"before_start": {"command": "python migrate.py", "once": True}}},
    }
    add_wheel(tree(top / "listed", REQUIREMENTS) / "wheels/found_lib-2.0-py3-none-any.whl")
    common = {"run": {"wsgi": "web:application"}, "processes": 1, "drain": 2}
    return {
        name: {"source": {"path": str(tree(top / name, files))}, "domains": [f"{name}.test"], **common, **kinds.get(name, {})}
        for name, files in sources.items()
    }


def get(host: Host, name: str) -> Any:
    """Return the response of an app."""
    return Site(address(host), f"{name}.test").get("/")


def test_projects_are_served_with_the_dependencies_that_they_declare(host: Host, entries: dict[str, Any], tmp_path: Path) -> None:
    options = extra_vars(tmp_path, apps(**entries))
    expect_success(run_playbook("playbooks/deploy.yml", HOST, *options, "-e", json.dumps({"app_names": NAMES})))
    scm = get(host, "scm").json
    assert (scm["scm-shop"], scm["click"]) == ("4.5.6", "8.1.7")
    assert scm["from"] == f"{host.check_output('readlink -f /srv/scm/live/release')}/package/scm_shop/__init__.py"
    assert scm["tornado"], "the runner's package is installed, as the app does not depend on it"
    assert get(host, "poetry").json["click"] == get(host, "pdm").json["click"] == "8.1.7"
    listed = get(host, "listed").json
    assert (listed["click"], listed["moving-lib"], listed["found-lib"]) == ("8.1.7", "1.0", "2.0")
    assert "/site-packages/" in listed["from"], "not editable"
    release = host.check_output("readlink -f /srv/uvlib/live/release")
    assert get(host, "uvlib").body.decode() == f"{release}/package/bin/moving-serve {release}/package/moving_lib/__init__.py"
    release = release_of(host, "branch")
    assert get(host, "branch").json == {"words": "the first commit", "releases": [release]}, "the migration ran once, before"


def release_of(host: Host, name: str) -> str:
    return host.check_output("readlink /srv/%s/live/release", name).rpartition("/")[2]


def test_a_moved_branch_is_installed_by_the_next_release(host: Host, entries: dict[str, Any], tmp_path: Path) -> None:
    before = release_of(host, "branch")
    host.check_output("sh -euc %s", MOVE_BRANCH)
    with Path(entries["branch"]["source"]["path"], "web.py").open("a") as code:
        code.write("# changed\n")
    expect_success(deploy("branch", HOST, tmp_path, apps(**entries)))
    release = release_of(host, "branch")
    assert get(host, "branch").json == {"words": "the second commit", "releases": [before, release]}
    expect_success(run_playbook("playbooks/rollback.yml", HOST, "-e", "app=branch"))
    assert get(host, "branch").json == {"words": "the first commit", "releases": [before, release]}


def test_failed_builds_and_migrations_leave_nothing(host: Host, entries: dict[str, Any], tmp_path: Path) -> None:
    def files() -> str:
        return host.check_output("cd /srv/branch && ls -A . releases environments slots && readlink live")

    before = files()
    failing = entries["branch"] | {"build": {"env": {"OTHER": "environment"}}, "hooks": {"build": "sh -c 'echo no sass; false'"}}
    status, output = deploy("branch", HOST, tmp_path, apps(**entries | {"branch": failing}))
    assert status != 0
    assert re.search(r"tornado_apps\.branch\.hooks\.build: .* failed; .*no sass", re.sub(r"\s+", " ", output))
    assert files() == before

    failing = entries["branch"] | {"hooks": {"before_start": "sh -c 'echo no such column; false'"}, "keep_releases": 1}
    status, output = deploy("branch", HOST, tmp_path, apps(**entries | {"branch": failing}))
    assert status != 0
    assert re.search(r"did not go live: hooks\.before_start failed .*: no such column", re.sub(r"\s+", " ", output))
    assert get(host, "branch").json["words"] == "the first commit"
    assert find_leftovers(host, "branch") == []
