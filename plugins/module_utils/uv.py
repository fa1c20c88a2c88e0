"""Install uv, the builder of environments, in one version at a fixed path."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.command import CommandError, last_lines, run

HOME = Path("/opt/uv")
LINK = Path("/usr/local/bin/uv")

#: What uv and git need in their environment to build: index, certificates, proxy. The python role writes it.
ENVIRONMENT = Path("/etc/uv/environment")

#: Where Debian's python3-pip-whl, which python3-venv depends on, has pip. It runs from there: making an environment
#: only to have pip in it takes seconds.
PIP_WHEELS = Path("/usr/share/python-wheels")


class UvError(Exception):
    """uv was not installed; the version that was there still is. The message holds pip's last lines."""


@dataclass(frozen=True)
class Uv:
    """A version of uv below ``home``, ``link`` pointing to it."""

    version: str
    home: Path = HOME
    link: Path = LINK

    @property
    def directory(self) -> Path:
        """Where this version is."""
        return self.home / self.version

    @property
    def program(self) -> Path:
        """The executable of this version."""
        return self.directory / "bin/uv"

    def others(self) -> list[Path]:
        """Return what else is below ``home``: other versions, and what a cut-off run left."""
        return sorted(path for path in self.home.iterdir() if path != self.directory) if self.home.is_dir() else []

    def is_right(self) -> bool:
        """Tell whether it is installed and linked, and nothing else is there."""
        linked = self.link.is_symlink() and self.link.readlink() == self.program
        return linked and os.access(self.program, os.X_OK) and not self.others()

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
            for other in self.others():
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


def pip_environment(
    *, index_url: str, extra_index_urls: Sequence[str], ca_bundle: str, proxy: str, no_proxy: str, wheelhouse: Path | None
) -> dict[str, str]:
    """Return the environment that lets pip use an index, certificates and a proxy; unset is what is empty.

    With a wheelhouse no index is asked.

    The environment, because these may hold passwords and arguments are seen by every user of a host.
    """
    values = {
        "PIP_INDEX_URL": index_url,
        "PIP_EXTRA_INDEX_URL": " ".join(extra_index_urls),
        "PIP_CERT": ca_bundle,
        "PIP_PROXY": proxy,
        "NO_PROXY": no_proxy,
        "PIP_NO_INDEX": "1" if wheelhouse else "",
        "PIP_FIND_LINKS": str(wheelhouse or ""),
    }
    return {name: value for name, value in values.items() if value}


def build_environment(path: Path = ENVIRONMENT) -> dict[str, str]:
    """Return the environment that uv and git have to be run with; nothing while the python role was not applied."""
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def _pip() -> Path:
    wheels = sorted(PIP_WHEELS.glob("pip-*.whl"))
    if not wheels:
        raise UvError(f"there is no pip in {PIP_WHEELS}: install the package python3-venv")
    return wheels[-1]
