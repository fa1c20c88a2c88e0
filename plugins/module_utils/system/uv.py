"""Install uv, the builder of environments, in one version at a fixed path."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, last_lines, run
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import UV_ENVIRONMENT
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import File

HOME = Path("/opt/uv")
LINK = Path("/usr/local/bin/uv")

#: Where Debian's python3-pip-whl, which python3-venv depends on, has pip. It runs from there: making an environment
#: only to have pip in it takes seconds.
PIP_WHEELS = Path("/usr/share/python-wheels")


#: Everybody may read it, because uv refuses to run for those who cannot. What may hold passwords is in `UV_ENVIRONMENT`.
_TOML = """\
# Environments are built of the system's Python, which security updates reach. Only an app that asks for another version
# gets one, by way of its build.
python-preference = "only-system"
python-downloads = "never"
system-certs = true
"""


#: The module's options that say where to fetch from.
SOURCES = ("index_url", "extra_index_urls", "ca_bundle", "proxy", "no_proxy", "mirror", "downloads_json")


class UvError(Exception):
    """uv was not installed; the version that was there still is. The message holds pip's last lines."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where uv, pip and git fetch from; what is empty is as the host has it. With a ``wheelhouse`` no index is asked."""

    index_url: str = ""
    extra_index_urls: Sequence[str] = ()
    ca_bundle: str = ""
    proxy: str = ""
    no_proxy: str = ""
    mirror: str = ""
    downloads_json: str = ""
    wheelhouse: Path | None = None

    def pip_environment(self) -> dict[str, str]:
        """Return pip's environment: arguments are seen by every user of a host, and these may hold passwords."""
        return _set(
            {
                "PIP_INDEX_URL": self.index_url,
                "PIP_EXTRA_INDEX_URL": " ".join(self.extra_index_urls),
                "PIP_CERT": self.ca_bundle,
                "PIP_PROXY": self.proxy,
                "NO_PROXY": self.no_proxy,
                "PIP_NO_INDEX": "1" if self.wheelhouse else "",
                "PIP_FIND_LINKS": str(self.wheelhouse or ""),
            }
        )

    def files(self) -> list[File]:
        """Return what lets builds fetch from there: uv's configuration, and the environment that uv and git are run with."""
        toml = f'{_TOML}\nno-index = true\nfind-links = ["{self.wheelhouse}"]\n' if self.wheelhouse else _TOML
        environment = _set(
            {
                "SSL_CERT_FILE": self.ca_bundle,
                "GIT_SSL_CAINFO": self.ca_bundle,
                "UV_DEFAULT_INDEX": "" if self.wheelhouse else self.index_url,
                "UV_INDEX": "" if self.wheelhouse else " ".join(self.extra_index_urls),
                "UV_PYTHON_INSTALL_MIRROR": self.mirror,
                "UV_PYTHON_DOWNLOADS_JSON_URL": self.downloads_json,
                "http_proxy": self.proxy,
                "https_proxy": self.proxy,
                "no_proxy": self.no_proxy,
            }
        )
        lines = "".join(f"{name}={value}\n" for name, value in environment.items())
        return [
            File("uv.toml", f"# Ansible managed\n{toml}".encode()),
            File(UV_ENVIRONMENT.name, f"# Ansible managed\n{lines}".encode(), mode=0o640, secret=True),
        ]


@dataclass(frozen=True)
class Uv:
    """A version of uv below ``home``, ``link`` pointing to it."""

    version: str
    home: Path = HOME
    link: Path = LINK

    @classmethod
    def installed_version(cls) -> str:
        """Return the version that is installed and linked, and alone; empty if there is none such."""
        version = LINK.readlink().parent.parent.name if LINK.is_symlink() else ""
        return version if version and cls(version).is_up_to_date() else ""

    @property
    def directory(self) -> Path:
        """Where this version is."""
        return self.home / self.version

    @property
    def program(self) -> Path:
        """The executable of this version."""
        return self.directory / "bin/uv"

    def other_paths(self) -> list[Path]:
        """Return what else is below ``home``: other versions, and what a cut-off run left."""
        return sorted(path for path in self.home.iterdir() if path != self.directory) if self.home.is_dir() else []

    def is_up_to_date(self) -> bool:
        """Tell whether it is installed and linked, and nothing else is there."""
        linked = self.link.is_symlink() and self.link.readlink() == self.program
        return linked and os.access(self.program, os.X_OK) and not self.other_paths()

    def install(self, hashes: Sequence[str], environment: Mapping[str, str]) -> None:
        """Install this version if it is not there, link it, and remove the others.

        ``hashes`` are those of the wheels that may be installed (``sha256:...``); without any, all may.
        ``environment`` is pip's: its index, certificates and proxy.

        :raises UvError: when pip cannot get it or it does not run.
        """
        try:
            if not os.access(self.program, os.X_OK):
                self._download(hashes, environment)
            self._link()
            for other in self.other_paths():
                shutil.rmtree(other)
        except (OSError, CommandError) as error:
            raise UvError(f"uv {self.version}: {error}") from error

    def _download(self, hashes: Sequence[str], environment: Mapping[str, str]) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".new", dir=self.home) as directory:
            new = Path(directory) / "uv"
            wanted = Path(directory) / "requirements.txt"
            wanted.write_text(" ".join([f"uv=={self.version}", *(f"--hash={one}" for one in hashes)]))
            options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-compile", "--quiet"]
            command = ["/usr/bin/python3", f"{_pip()}/pip", "install", *options, f"--target={new}", f"--requirement={wanted}"]
            finished = run(command, timeout=600, environment={**_PIP_ENVIRONMENT, **environment}, check=False)
            if finished.status != 0:
                raise UvError(f"uv {self.version} cannot be installed:\n{last_lines(finished.output, 10)}")
            run([str(new / "bin/uv"), "--version"])
            shutil.rmtree(self.directory, ignore_errors=True)
            new.rename(self.directory)

    def _link(self) -> None:
        ready = self.link.with_name(f".{self.link.name}.new")
        ready.unlink(missing_ok=True)
        ready.symlink_to(self.program)
        ready.replace(self.link)


_PIP_ENVIRONMENT = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore"}


def _set(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def _pip() -> Path:
    wheels = sorted(PIP_WHEELS.glob("pip-*.whl"))
    if not wheels:
        raise UvError(f"there is no pip in {PIP_WHEELS}: install the package python3-venv")
    return wheels[-1]
