"""Installation of uv, which builds virtual environments, and its configuration."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core import atomic
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, last_lines, run
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import UV_ENVIRONMENT
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import File
from ansible_collections.funnel.tornado.plugins.module_utils.system.pip_configuration import SYSTEM_CERTIFICATES
from ansible_collections.funnel.tornado.plugins.module_utils.system.replaced_files import move_away

HOME = Path("/opt/uv")
LINK = Path("/usr/local/bin/uv")

#: Directory of the pip wheel of python3-pip-whl, a dependency of python3-venv. pip runs from the wheel, because creating an
#: environment for it takes seconds.
PIP_WHEELS = Path("/usr/share/python-wheels")


#: World-readable, because uv fails for users who cannot read it. Values that may contain passwords are in `UV_ENVIRONMENT`.
_TOML = """\
# Environments use the Python of the system, which gets security updates. Builds override this for apps that request another
# version.
python-preference = "only-system"
python-downloads = "never"
system-certs = true
"""


#: Options of the module for the sources of downloads.
SOURCES = ("index_url", "extra_index_urls", "ca_bundle", "proxy", "no_proxy", "mirror", "downloads_json")


#: Mode bits that let all users read and execute a file, or enter a directory.
_PUBLIC = 0o555


class UvError(Exception):
    """uv was not installed; the previous version remains. The message contains the last lines of pip's output."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Sources from which uv, pip and git download; empty values are defaults. A ``wheelhouse`` replaces all indexes."""

    index_url: str = ""
    extra_index_urls: Sequence[str] = ()
    ca_bundle: str = ""
    proxy: str = ""
    no_proxy: str = ""
    mirror: str = ""
    downloads_json: str = ""
    wheelhouse: Path | None = None

    def pip_environment(self) -> dict[str, str]:
        """Return the environment of pip, as URLs with passwords must not appear in the process list."""
        return _set(
            {
                "PIP_INDEX_URL": self.index_url,
                "PIP_EXTRA_INDEX_URL": " ".join(self.extra_index_urls),
                "PIP_CERT": "" if self.ca_bundle == SYSTEM_CERTIFICATES else self.ca_bundle,  # the default of pip and pip.conf
                "PIP_PROXY": self.proxy,
                "NO_PROXY": self.no_proxy,
                "PIP_NO_INDEX": "1" if self.wheelhouse else "0" if self.index_url or self.extra_index_urls else "",
                "PIP_FIND_LINKS": str(self.wheelhouse or ""),
            }
        )

    def files(self) -> list[File]:
        """Return the configuration of uv, and the file with the environment of uv and git."""
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
    """A version of uv below ``home``; ``link`` points to it."""

    version: str
    home: Path = HOME
    link: Path = LINK

    @classmethod
    def installed_version(cls) -> str:
        """Return the installed version; empty if it is not linked, or not the only one."""
        version = LINK.readlink().parent.parent.name if LINK.is_symlink() else ""
        return version if version and cls(version).is_up_to_date() else ""

    @property
    def directory(self) -> Path:
        """Directory of this version."""
        return self.home / self.version

    @property
    def program(self) -> Path:
        """The executable of this version."""
        return self.directory / "bin/uv"

    def other_paths(self) -> list[Path]:
        """Return the other paths below ``home``: other versions, and leftovers of interrupted runs."""
        return sorted(path for path in self.home.iterdir() if path != self.directory) if self.home.is_dir() else []

    def move_other(self, *, check_mode: bool = False) -> str:
        """Move a program of the administrator out of the place of the link; return a message if there is one."""
        linked = self.link.is_symlink() and self.link.readlink().is_relative_to(self.home)
        return move_away(self.link, check_mode=check_mode) if os.path.lexists(self.link) and not linked else ""

    def is_up_to_date(self) -> bool:
        """Return whether it is installed, linked and the only version."""
        linked = self.link.is_symlink() and self.link.readlink() == self.program
        readable = not UV_ENVIRONMENT.parent.is_dir() or _is_public(UV_ENVIRONMENT.parent)
        return linked and readable and self._is_executable() and not self.other_paths()

    def _is_executable(self) -> bool:
        """Return whether all users can execute it: builds run as the users of apps."""
        paths = (self.home, self.directory, self.program.parent, self.program)
        return all(path.exists() and _is_public(path) for path in paths) and self._is_complete()

    def _is_complete(self) -> bool:
        """Return whether the executable has the size that its package records."""
        recorded = [path.read_text(encoding="utf-8") for path in self.directory.glob("uv-*.dist-info/RECORD")]
        sizes = re.findall(r"^(?:\S*/)?bin/uv,[^,]*,(\d+)$", "".join(recorded), re.MULTILINE)
        return not sizes or self.program.stat().st_size == int(sizes[0])

    def install(self, hashes: Sequence[str], environment: Mapping[str, str]) -> str:
        """Install this version if it is missing, link it, and remove other versions.

        Return a message if another program was in the place of the link; it is kept.

        :arg hashes: hashes of the accepted wheels (``sha256:...``); empty accepts all.
        :arg environment: environment of pip: index, certificates and proxy.
        :raises UvError: if pip cannot download it, or it does not run.
        """
        try:
            if not self._is_executable():
                self._download(hashes, environment)
                self.home.chmod(0o755)
            if UV_ENVIRONMENT.parent.is_dir():
                UV_ENVIRONMENT.parent.chmod(0o755)
            message = self.move_other()
            atomic.replace_link(self.link, self.program)
            for other in self.other_paths():
                shutil.rmtree(other)
        except (OSError, CommandError) as error:
            raise UvError(f"uv {self.version}: {error}") from error
        return message

    def _download(self, hashes: Sequence[str], environment: Mapping[str, str]) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".new", dir=self.home) as directory:
            new = Path(directory) / "uv"
            requirements = Path(directory) / "requirements.txt"
            requirements.write_text(
                " ".join([f"uv=={self.version}", *(f"--hash={digest}" for digest in hashes)]), encoding="utf-8"
            )
            options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-compile", "--quiet"]
            command = [
                "/usr/bin/python3",
                f"{_pip()}/pip",
                "install",
                *options,
                f"--target={new}",
                f"--requirement={requirements}",
            ]
            # The configuration of pip on the host counts, but not the environment of the connection.
            ignored = {name: "" for name in os.environ if name.startswith("PIP_")}
            result = run(command, timeout=600, environment={**ignored, **_PIP_ENVIRONMENT, **environment}, check=False)
            if result.status != 0:
                raise UvError(f"uv {self.version} cannot be installed:\n{last_lines(result.output, 10)}")
            run([str(new / "bin/uv"), "--version"])
            shutil.rmtree(self.directory, ignore_errors=True)
            new.rename(self.directory)


#: Settings of pip.conf for other installations do not apply: they would refuse the target.
_PIP_ENVIRONMENT = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "PIP_REQUIRE_VIRTUALENV": "0",
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_USER": "0",
}


def _is_public(path: Path) -> bool:
    return path.stat().st_mode & _PUBLIC == _PUBLIC


def _set(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def _pip() -> Path:
    wheels = sorted(PIP_WHEELS.glob("pip-*.whl"))
    if not wheels:
        raise UvError(f"{PIP_WHEELS} contains no pip: install the package python3-venv")
    return wheels[-1]
