"""Sources and dependencies: each kind of source and lock file, another Python version, and a wheelhouse without an index."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from testinfra.host import Host

from tests.support.remote import PLAIN_ENV, ROOT, Site, address, apps, deploy, extra_vars, run_playbook, run_site

TORNADO = "tornado==6.6.1"
UV = yaml.safe_load((ROOT / "roles/python/defaults/main.yml").read_text())["python_uv_version"]

#: An unreachable index in the lock files: hosts must query their own index.
UNREACHABLE_INDEX = "https://index.invalid"

HELLO = """
import sys
import tornado.web
{imports}

class HelloHandler(tornado.web.RequestHandler):
    def get(self):
        self.write({{"words": {words}, "tornado": tornado.version, "python": sys.version.split()[0], "prefix": sys.base_prefix}})


def make_app():
    return tornado.web.Application([("/", HelloHandler)])
"""

GIT_SERVER = """
useradd --create-home --shell /bin/sh gitter
cd /home/gitter
mkdir .ssh && echo '{public}' > .ssh/authorized_keys
export GIT_CONFIG_COUNT=3 GIT_CONFIG_KEY_0=user.name GIT_CONFIG_VALUE_0=a GIT_CONFIG_KEY_1=user.email GIT_CONFIG_VALUE_1=a@a.test
export GIT_CONFIG_KEY_2=protocol.file.allow GIT_CONFIG_VALUE_2=always
git init -q -b main lib && echo 'WORDS = "from a submodule"' > lib/words.py
git -C lib add . && git -C lib commit -q -m a
git init -q -b main shop && echo '{requirements}' > shop/requirements.txt && printf %s '{hello}' > shop/hello.py
git -C shop submodule --quiet add ../lib lib
git -C shop add . && git -C shop commit -q -m a
chown -R gitter: /home/gitter
"""

FILE_SERVER = "systemd-run --quiet --collect --unit=files python3 -m http.server --bind 127.0.0.1 --directory /srv/www 8099"

#: Packs Debian's Python in the layout of python-build-standalone's archives: one directory with bin and lib.
PACK_PYTHON = """
rm -rf /root/packed && mkdir -p /root/packed/python/bin
cp -L /usr/bin/python3.11 /root/packed/python/bin/
ln -s python3.11 /root/packed/python/bin/python3
mkdir /root/packed/python/lib && cp -r /usr/lib/python3.11 /root/packed/python/lib/
find /root/packed -type l -lname '/*' -delete
tar -C /root/packed --exclude __pycache__ -czf /root/python.tar.gz python
"""


@dataclass(frozen=True)
class Sources:
    """Sources on the controller that the tests deploy."""

    directory: Path
    wheels: Path

    @property
    def lock(self) -> str:
        """The text of a uv.lock."""
        wheel, digest = self.tornado
        return (
            f"version = 1\nrevision = 3\nrequires-python = '>=3.11'\n"
            f"[[package]]\nname = 'hello'\nversion = '1.0'\nsource = {{ virtual = '.' }}\n"
            f"dependencies = [{{ name = 'tornado' }}]\n"
            f"[package.metadata]\nrequires-dist = [{{ name = 'tornado' }}]\n"
            f"[[package]]\nname = 'tornado'\nversion = '6.6.1'\nsource = {{ registry = '{UNREACHABLE_INDEX}/simple' }}\n"
            f"wheels = [{{ url = '{UNREACHABLE_INDEX}/{wheel}', hash = 'sha256:{digest}' }}]\n"
        )

    @property
    def pylock(self) -> str:
        """The text of a pylock.toml (PEP 751)."""
        wheel, digest = self.tornado
        return (
            "lock-version = '1.0'\ncreated-by = 'hand'\n[[packages]]\nname = 'tornado'\nversion = '6.6.1'\n"
            f"wheels = [{{ url = '{UNREACHABLE_INDEX}/{wheel}', hashes = {{ sha256 = '{digest}' }} }}]\n"
        )

    @property
    def tornado(self) -> tuple[str, str]:
        """The name and hash of Tornado's wheel."""
        wheel = next(self.wheels.glob("tornado-*.whl"))
        return wheel.name, sha256(wheel)

    def tree(self, name: str, **files: str) -> Path:
        """Write files to a new directory; ``_`` in a name stands for a dot."""
        top = self.directory / name
        top.mkdir()
        for file, text in files.items():
            (top / file.replace("_", ".")).write_text(text)
        return top

    def tar(self, top: Path) -> Path:
        """Pack a directory as a tar archive."""
        file = top.with_name(f"{top.name}.tar.xz")
        with tarfile.open(file, "w:xz") as archive:
            archive.add(top, arcname=top.name)
        return file


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Download the wheels of Tornado and uv, and build the wheel of an app."""
    directory = tmp_path_factory.mktemp("sources")
    wheels = directory / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", f"--dest={wheels}"]
    subprocess.run([*command, TORNADO, f"uv=={UV}"], check=True)
    with zipfile.ZipFile(wheels / "hello_shop-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("hello_shop/__init__.py", hello("from a package"))
        wheel.writestr("hello_shop/static/hello.txt", "static of a package")
        info = "hello_shop-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: hello-shop\nVersion: 1.0\nRequires-Dist: {TORNADO}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        names = [*wheel.namelist(), f"{info}/RECORD"]
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    return Sources(directory, wheels)


@pytest.fixture(scope="module", autouse=True)
def remove_apps(hosts: dict[str, Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove the apps and their sources after the module."""
    yield
    hosts["debian13"].check_output("touch --date '2 days ago' /opt/python/*/.funnel-last-build")
    names = {"debian12": ["cloned", "locked", "zipped", "refused"], "debian13": ["packaged", "other"]}
    for host, apps_of_host in names.items():
        status, output = run_playbook("playbooks/remove.yml", host, "-e", json.dumps({"app_names": apps_of_host}))
        assert status == 0, output
    assert hosts["debian12"].run("ls -d /srv/refused /var/log/refused; id refused").stdout == "", (
        "of the app that was never built"
    )
    hosts["debian12"].check_output("systemctl stop files; userdel --remove gitter 2>/dev/null; rm -rf /srv/www /root/p*")
    assert hosts["debian13"].check_output("ls /opt/python") == "", "no app uses the Python"
    hosts["debian13"].check_output("rm -rf /opt/python /opt/wheelhouse /srv/mirror")
    status, output = run_site("debian13", tmp_path_factory.mktemp("before"), {})
    assert status == 0, output


def hello(words: str, imports: str = "") -> str:
    """Return the code of an app that responds with ``words``, or with the value of that name if ``imports`` are given."""
    return HELLO.format(words=words if imports else repr(words), imports=imports)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def ansible(host: str, module: str, arguments: dict[str, Any], *options: str) -> tuple[dict[str, Any], str]:
    """Run a module on a host; return its result and its output."""
    command = ["ansible", host, "-i", os.environ["MOLECULE_INVENTORY_FILE"], "-m", module, "-a", json.dumps(arguments)]
    environment = os.environ | PLAIN_ENV | {"ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    completed = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    found = re.search(r"=> (\{.*\})", completed.stdout, re.DOTALL)
    assert found, completed.stdout + completed.stderr
    result: dict[str, Any] = json.loads(found[1])
    return result | {"failed": completed.returncode != 0}, completed.stdout + completed.stderr


def copy_to_host(host: str, file: Path, path: str) -> None:
    result, output = ansible(host, "ansible.builtin.copy", {"src": str(file), "dest": path})
    assert not result["failed"], output


@pytest.fixture(scope="module")
def key(sources: Sources) -> str:
    """Create a key pair and return the private key."""
    path = sources.directory / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)
    return path.read_text()


@pytest.fixture(scope="module")
def repository(hosts: dict[str, Host], sources: Sources, key: str) -> dict[str, Any]:
    """Serve a repository with a submodule over SSH from the host; return its source."""
    assert key
    public = (sources.directory / "key.pub").read_text().strip()
    code = hello("WORDS", "from lib.words import WORDS")
    hosts["debian12"].check_output("sh -euc %s", GIT_SERVER.format(public=public, requirements=TORNADO, hello=code))
    host_key = hosts["debian12"].check_output("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub").strip()
    return {"git": "ssh://gitter@127.0.0.1/home/gitter/shop", "deploy_key": key, "host_key": f"127.0.0.1 {host_key}"}


@pytest.fixture(scope="module")
def archive_source(hosts: dict[str, Host], sources: Sources) -> dict[str, Any]:
    """Serve an archive with a uv.lock over HTTP on the host's loopback interface; return its source."""
    project = f"[project]\nname = 'hello'\nversion = '1.0'\nrequires-python = '>=3.11'\ndependencies = ['{TORNADO}']\n"
    top = sources.tree("locked-1.0", hello_py=hello("from a server"), pyproject_toml=project, uv_lock=sources.lock)
    file = sources.tar(top)
    hosts["debian12"].check_output("mkdir -p /srv/www")
    copy_to_host("debian12", file, "/srv/www/locked.tar.xz")
    hosts["debian12"].check_output(FILE_SERVER)
    return {"archive": "http://127.0.0.1:8099/locked.tar.xz", "checksum": f"sha256:{sha256(file)}"}


def zipped(sources: Sources, words: str) -> dict[str, Any]:
    """Create a zip file on the controller with an app, its pylock.toml and a start program in a directory; return its source."""
    file = sources.directory / "zipped.zip"
    program = zipfile.ZipInfo("zipped-1.0/apps/hello/serve")
    program.external_attr = 0o100755 << 16
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(program, '#!/bin/sh\nexec python ../runner hello:make_app --socket "$1"\n')
        archive.writestr("zipped-1.0/apps/hello/hello.py", hello(words))
        archive.writestr("zipped-1.0/apps/hello/pylock.toml", sources.pylock)
        archive.writestr("zipped-1.0/apps/hello/www/hello.txt", words)
        archive.writestr("zipped-1.0/requirements.txt", "not-of-this-app==1")
    return {"archive": str(file), "subdirectory": "apps/hello"}


def entry(name: str, source: dict[str, Any], **keys: Any) -> dict[str, Any]:
    site = {"domains": [f"{name}.test"], "processes": 1, "drain": 2}
    return {"source": source, "run": {"app": "hello:make_app"}, **site, **keys}


@pytest.fixture(scope="module")
def entries(sources: Sources, repository: dict[str, Any], archive_source: dict[str, Any]) -> dict[str, Any]:
    static = {"run": {"command": "./serve {socket}"}, "static": {"url": "/static/", "path": "www"}}
    return {
        "cloned": entry("cloned", repository),
        "locked": entry("locked", archive_source),
        "zipped": entry("zipped", zipped(sources, "from a zip file"), **static),
    }


def test_check_mode_reports_release_without_writing(hosts: dict[str, Host], entries: dict[str, Any], key: str) -> None:
    commit = hosts["debian12"].check_output("git -c safe.directory='*' -C /home/gitter/shop rev-parse HEAD").strip()
    options = {"name": "cloned", "apps": {"cloned": entries["cloned"]}}
    result, output = ansible("debian12", "funnel.tornado.release", options, "--check", "--diff", "-vvv")
    assert result["changed"], output
    assert f"+release {result['id']} of revision {commit}, 1 process\n" in output
    assert key.splitlines()[2] not in output
    assert "cloned" not in hosts["debian12"].check_output("ls -A /srv").split()


def test_every_kind_of_source_is_served_with_its_dependencies(
    hosts: dict[str, Host], entries: dict[str, Any], key: str, tmp_path: Path
) -> None:
    names = json.dumps({"app_names": list(entries)})
    status, output = run_playbook("playbooks/deploy.yml", "debian12", "-v", *extra_vars(tmp_path, apps(**entries)), "-e", names)
    assert status == 0, output
    words = {"cloned": "from a submodule", "locked": "from a server", "zipped": "from a zip file"}
    for name, text in words.items():
        response = Site(address(hosts["debian12"]), f"{name}.test").get("/").json
        assert (response["words"], response["tornado"]) == (text, "6.6.1")
    assert Site(address(hosts["debian12"]), "zipped.test").get("/static/hello.txt").body == b"from a zip file"
    assert output.count("environment: built") == 3

    secret = key.splitlines()[2]
    assert secret not in output
    assert hosts["debian12"].run("grep -rlF %s /srv /etc /root /tmp /var/log /var/tmp", secret).stdout == ""

    status, output = run_playbook("playbooks/deploy.yml", "debian12", *extra_vars(tmp_path, apps(**entries)), "-e", names)
    assert status == 0, output
    assert "changed=0" in output


def test_unchanged_dependencies_reuse_the_environment(
    hosts: dict[str, Host], entries: dict[str, Any], sources: Sources, tmp_path: Path
) -> None:
    before = hosts["debian12"].check_output("readlink -f /srv/zipped/current/venv")
    changed = entries["zipped"] | {"source": zipped(sources, "from another one")}
    status, output = deploy("zipped", "debian12", tmp_path, apps(**entries | {"zipped": changed}), "-v")
    assert status == 0, output
    assert "environment: reused" in output
    assert Site(address(hosts["debian12"]), "zipped.test").get("/").json["words"] == "from another one"
    assert hosts["debian12"].check_output("readlink -f /srv/zipped/current/venv") == before
    assert hosts["debian12"].check_output("ls /srv/zipped/environments").split() == [Path(before).name]


def invalid_entries(
    sources: Sources, repository: dict[str, Any], archive_source: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield entries that cannot be built, each with the expected message."""
    wrong = f"sha256:{'0' * 64}"
    yield (
        {"source": archive_source | {"checksum": wrong}},
        rf"source\.checksum: http://127.0.0.1:8099/locked.tar.xz hashes to {archive_source['checksum']}; expected {wrong}",
    )
    yield (
        {"source": zipped(sources, "x") | {"checksum": wrong}},
        rf"source\.checksum: .*zipped\.zip hashes to sha256:\w+; expected {wrong}",
    )
    yield (
        {"source": {"git": repository["git"], "host_key": repository["host_key"]}},
        r"source\.git: ssh://gitter@127.0.0.1/home/gitter/shop cannot be fetched from this host: .*Permission denied",
    )
    other = "127.0.0.1 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBqk6rGkGgI+zCNSlDnlHUpcQd7sbzZ2SxbTLBDs4tAp"
    yield {"source": repository | {"host_key": other}}, r"source\.git: .*Host key verification failed"

    project = "[project]\nname = 'hello'\nversion = '1.0'\nrequires-python = '>=3.99'\n"
    path = str(sources.tree("excluded", pyproject_toml=project))
    yield {"source": {"path": path}}, r"python\.version: pyproject.toml requires Python >=3.99; this is 3.11.\d"

    path = str(sources.tree("pypy", runtime_txt="pypy-3.10"))
    yield {"source": {"path": path}}, r"python\.version: the source's runtime.txt asks for 'pypy-3.10'; only versions of CPython"

    yield (
        {"source": {"path": path}, "python": {"version": "3.99"}},
        r"python\.version: Python 3.99 cannot be installed; .* uv reports: .*No download found for request",
    )

    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    yield (
        {"source": {"archive": str(sources.tar(sources.tree("lfs", logo_png=pointer)))}},
        r"source\.archive: .*logo\.png is a Git LFS pointer instead of the file",
    )

    path = str(sources.tree("unhashed", requirements_txt=f"{TORNADO} --hash=sha256:{'0' * 64}\n"))
    yield {"source": {"path": path}}, r"source: requirements.txt cannot be installed .*[Hh]ash"

    no_tornado = {"run": {"command": "./serve {socket}"}}
    linked = sources.tree("linked")
    (linked / "static").symlink_to("/etc")
    yield (
        no_tornado | {"source": {"archive": str(sources.tar(linked))}, "static": {}},
        r"source: static is a link to a path outside its tree, /etc",
    )

    piped = sources.tree("piped")
    os.mkfifo(piped / "pipe")
    yield (
        {"source": {"archive": str(sources.tar(piped))}},
        r"source\.archive: cannot be unpacked .*pipe is not a file, directory or link",
    )

    path = str(sources.tree("hooked"))
    hook = "sh -c 'echo half >half; echo cannot go on; exit 3'"
    yield no_tornado | {"source": {"path": path}, "hooks": {"build": hook}}, r"hooks\.build: .* \(exit status 3\): cannot go on"
    yield (
        no_tornado | {"source": {"path": path}, "hooks": {"build": "sh -c 'sleep 4321 & sleep 4321'", "timeout": 1}},
        r"hooks\.build: .* did not end within 1 s",
    )


def test_failed_build_is_reported_without_leftovers(
    hosts: dict[str, Host], sources: Sources, repository: dict[str, Any], archive_source: dict[str, Any], key: str
) -> None:
    for keys, message in invalid_entries(sources, repository, archive_source):
        apps = {"refused": entry("refused", **keys)}
        result, output = ansible("debian12", "funnel.tornado.release", {"name": "refused", "apps": apps})
        assert result["failed"], (message, output)
        assert re.search(rf"tornado_apps\.refused\.{message}", result["msg"].replace("\n", " ")), (message, result["msg"])
        assert key.splitlines()[2] not in output
    assert hosts["debian12"].check_output("ls -A /srv/refused/releases") == ""
    assert hosts["debian12"].run("pgrep -u refused").stdout == ""


@pytest.fixture
def mirror(hosts: dict[str, Host], tmp_path: Path) -> None:
    """Create a mirror of Python builds on debian13, with the Python of Debian 12 and a list of downloads."""
    hosts["debian12"].check_output("sh -euc %s", PACK_PYTHON)
    packed = tmp_path / "python.tar.gz"
    ansible("debian12", "ansible.builtin.fetch", {"src": "/root/python.tar.gz", "dest": str(packed), "flat": True})
    entry = {"name": "cpython", "arch": {"family": "x86_64", "variant": None}, "os": "linux", "libc": "gnu", "variant": None}
    version = {"major": 3, "minor": 11, "patch": 2, "prerelease": "", "build": "1"}
    origin = {"url": "https://github.com/astral-sh/python-build-standalone/releases/download/1/python.tar.gz"}
    (tmp_path / "list.json").write_text(json.dumps({"cpython-3.11.2": entry | version | origin | {"sha256": sha256(packed)}}))
    hosts["debian13"].check_output("mkdir -p /srv/mirror/1")
    copy_to_host("debian13", packed, "/srv/mirror/1/python.tar.gz")
    copy_to_host("debian13", tmp_path / "list.json", "/srv/mirror/list.json")


@pytest.mark.usefixtures("mirror")
def test_wheelhouse_provides_uv_a_package_and_another_python(hosts: dict[str, Host], sources: Sources, tmp_path: Path) -> None:
    host = hosts["debian13"]
    host.check_output("rm -rf /opt/uv")  # uv must be installed from the wheelhouse, too
    files = {"_python-version": "3.11\n", "hello_py": hello("from 3.11"), "requirements_txt": f"{TORNADO}\n"}
    path = str(sources.tree("other", **files))
    package = {"run": {"app": "hello_shop:make_app"}, "static": {"path": "hello_shop/static"}}
    entries = {
        "packaged": entry("packaged", {"package": "hello-shop", "version": "1.0"}, **package),
        "other": entry("other", {"path": path}),  # the host's Python is another one
    }
    python = {
        "python_wheelhouse": str(sources.wheels),
        "python_index_url": "http://127.0.0.1:9/simple",
        "python_mirror": "file:///srv/mirror",
        "python_downloads_json": "/srv/mirror/list.json",
    }
    status, output = run_site("debian13", tmp_path, apps(**entries) | python)
    assert status == 0, output

    packaged = Site(address(host), "packaged.test")
    assert packaged.get("/").json["words"] == "from a package"
    assert packaged.get("/static/hello.txt").body == b"static of a package"
    response = Site(address(host), "other.test").get("/").json
    assert (response["words"], response["python"]) == ("from 3.11", "3.11.2")
    assert response["prefix"].startswith("/opt/python/")
    assert host.run("command -v python3.11").stdout == ""
    modes = host.check_output("stat --format '%a %U' /opt/python/.lock /opt/python/.funnel.lock").splitlines()
    assert modes == ["600 root"] * 2, "an app must not block builds"

    status, output = run_site("debian13", tmp_path, apps(**entries) | python)
    assert status == 0, output
    assert "changed=0" in output

    sources.wheels.joinpath("hello_shop-1.0-py3-none-any.whl").unlink()
    options = {"version": UV, "wheelhouse": str(sources.wheels)}
    result, output = ansible("debian13", "funnel.tornado.uv", options, "--check", "--diff")
    assert "-/opt/wheelhouse/hello_shop-1.0-py3-none-any.whl\n" in output
    result, output = ansible("debian13", "funnel.tornado.uv", options)
    assert result["changed"], output
    assert sorted(host.check_output("ls /opt/wheelhouse").split()) == sorted(path.name for path in sources.wheels.iterdir())
