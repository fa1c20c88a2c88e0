"""Root file systems of bare Debian and Ubuntu releases, built once with mmdebstrap; hosts share them as a lower layer.

A recipe has all inputs: the mirrors of the machine's apt, its additional CA certificates and the packages. The root file system
is named by a hash of the recipe, so a changed recipe is rebuilt.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
import urllib.request
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tools.packages import ToolError, run, say

RELEASES = {"bookworm": "Debian 12", "trixie": "Debian 13", "noble": "Ubuntu 24.04", "resolute": "Ubuntu 26.04"}
CACHE = Path("/var/cache/funnel-hosts")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Debian has no package of Ubuntu's keys. This is the key of 2018: F6EC B376 2474 EDA9 D21B 7022 8719 20D1 991B C93C.
UBUNTU_KEY = Path(__file__).with_name("ubuntu-archive.asc")
UBUNTU_KEYRING = "/usr/share/keyrings/ubuntu-archive-keyring.gpg"
UBUNTU_MIRROR = "http://archive.ubuntu.com/ubuntu"
CERTIFICATES = Path("/usr/local/share/ca-certificates")
# The minimum that Ansible requires: the roles install the rest, including python3-apt.
PACKAGES = ("ca-certificates", "dbus", "iproute2", "openssh-server", "python3", "systemd", "systemd-sysv")
# Packages that minbase has on Debian, but not on Ubuntu.
UBUNTU_PACKAGES = ("apt", "ubuntu-keyring")
# Options for the access of the machine's apt to its mirrors.
APT_OPTIONS = ("Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Date", "Acquire::Check-Valid-Until")
# A third of the package lists, which every host downloads and reads.
NO_TRANSLATIONS = 'Acquire::Languages "none";'
MIRROR_TIMEOUT = 10.0  # seconds
UNUSED_AFTER = 14 * 24 * 3600.0  # seconds


@dataclass(frozen=True)
class Source:
    """One mirror and suite of an apt sources list."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""


@dataclass(frozen=True)
class Recipe:
    """The inputs of a root file system.

    `sources` are lines for apt, `apt_options` lines for apt.conf, `certificates` maps file names to PEM texts.
    """

    release: str
    sources: tuple[str, ...]
    apt_options: tuple[str, ...]
    certificates: dict[str, str]
    packages: tuple[str, ...] = PACKAGES
    hooks: tuple[str, ...] = (
        'rm --force "$1"/etc/ssh/ssh_host_*',  # every host gets its own
        f'mkdir --parents {CERTIFICATES} "$1"{CERTIFICATES}',
        f"sync-in {CERTIFICATES} {CERTIFICATES}",
        'chroot "$1" update-ca-certificates',
        'chroot "$1" systemctl enable systemd-networkd.service',
    )

    @property
    def title(self) -> str:
        """The release for messages, such as `Debian 12 (bookworm)`."""
        return f"{RELEASES[self.release]} ({self.release})"

    @property
    def root(self) -> Path:
        """The path of the cached root file system, in a directory of its own that is closed to other users."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return CACHE / f"{self.release}-{digest[:12]}" / "root"

    def command(self, output: Path) -> list[str]:
        """Return the command line that builds the root file system in the directory `output`."""
        return [
            "mmdebstrap",
            "--variant=minbase",
            "--format=directory",
            f"--include={','.join(self.packages)}",
            *(f"--aptopt={option}" for option in self.apt_options),
            *(f"--customize-hook={hook}" for hook in self.hooks),
            self.release,
            str(output),
            *self.sources,
        ]


def parse_one_line(text: str) -> list[Source]:
    """Parse an apt `sources.list`: `deb [option=value ...] uri suite component ...` (sources.list(5))."""
    sources = []
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>[^#]+)", line)
        if match:
            options = dict(option.split("=", 1) for option in (match["options"] or "").split() if "=" in option)
            signed_by = options.get("signed-by", "")
            sources.append(Source(match["uri"], match["suite"], tuple(match["components"].split()), signed_by))
    return sources


def parse_deb822(text: str) -> list[Source]:
    """Parse an apt `.sources` file: stanzas of `Types`, `URIs`, `Suites`, `Components` (sources.list(5))."""
    sources = []
    text = re.sub(r"(?m)^#.*\n?", "", text)
    for stanza in re.split(r"\n\s*\n", text):
        fields = {name.lower(): value.split() for name, value in re.findall(r"(?m)^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza)}
        if "deb" not in fields.get("types", []) or fields.get("enabled") == ["no"]:
            continue
        components, signed_by = tuple(fields.get("components", [])), " ".join(fields.get("signed-by", []))
        sources += [
            Source(uri, suite, components, signed_by) for uri in fields.get("uris", []) for suite in fields.get("suites", [])
        ]
    return sources


def debian_lines(sources: Iterable[Source], release: str) -> tuple[str, ...]:
    """Return the source lines of a Debian release, with the mirrors that `sources` use for any Debian release.

    The suites -updates and -security are included if the machine has them. Raises `ToolError` without a mirror of Debian.
    """
    suites = re.compile(r"(?:bullseye|bookworm|trixie|forky|sid|stable|oldstable|testing|unstable)(-updates|-security|)")
    mirrors: dict[str, str] = {}
    for source in sources:
        match = suites.fullmatch(source.suite)
        # Other vendors use Debian's code names, too; Debian's archive is signed by Debian's keys, the default.
        if match and "main" in source.components and source.signed_by in ("", KEYRING, KEYRING.replace(".gpg", ".pgp")):
            mirrors.setdefault(match[1], source.uri)
    if "" not in mirrors:
        raise ToolError("no mirror of Debian in /etc/apt/sources.list and /etc/apt/sources.list.d: add one")
    return tuple(f"deb [signed-by={KEYRING}] {mirrors[kind]} {release}{kind} main" for kind in sorted(mirrors))


def ubuntu_lines(mirror: str, release: str, key: Path) -> tuple[str, ...]:
    """Return the source lines of an Ubuntu release, verified with `key`."""
    suites = (release, f"{release}-updates", f"{release}-security")
    return tuple(f"deb [signed-by={key}] {mirror} {suite} main universe" for suite in suites)


def ubuntu_mirror(sources: Iterable[Source], release: str) -> str:
    """Return the machine's own mirror of Ubuntu, the one beside its mirror of Debian if there is one, or Ubuntu's archive."""
    uris = [source.uri.rstrip("/") for source in sources]
    candidates = [uri for uri in uris if uri.endswith("/ubuntu")]
    candidates += [uri.removesuffix("debian") + "ubuntu" for uri in uris if uri.endswith("/debian")]
    return next((uri for uri in dict.fromkeys(candidates) if has_release(uri, release)), UBUNTU_MIRROR)


def has_release(mirror: str, release: str) -> bool:
    """Return whether a mirror has a release."""
    try:
        urllib.request.build_opener().open(f"{mirror}/dists/{release}/Release", timeout=MIRROR_TIMEOUT).close()
    except (OSError, ValueError):  # an unreachable mirror, or one of an unknown kind
        return False
    return True


def machine_sources(etc: Path = Path("/etc/apt")) -> list[Source]:
    """Return the sources of the machine's apt."""
    sources = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.suffix == ".list" and path.is_file():
            sources += parse_one_line(path.read_text())
        elif path.suffix == ".sources":
            sources += parse_deb822(path.read_text())
    return [Source(_mirror(source.uri), source.suite, source.components, source.signed_by) for source in sources]


def _mirror(uri: str) -> str:
    """Return the first mirror of a local mirror list (as in Debian's cloud images), or the URI itself."""
    path = re.match(r"mirror\+file:(?://)?(/.*)", uri)
    return Path(path[1]).read_text().split()[0] if path else uri


def machine_recipe(release: str) -> Recipe:
    """Return the recipe of a release for this machine."""
    options = run(["apt-config", "dump", *APT_OPTIONS], "read the settings of apt").splitlines()
    sources = machine_sources()
    recipe = Recipe(
        release=release,
        sources=(),
        apt_options=(*(option for option in options if not option.endswith('"";')), NO_TRANSLATIONS),
        certificates={path.name: path.read_text() for path in sorted(CERTIFICATES.glob("*.crt"))},
    )
    if not RELEASES[release].startswith("Ubuntu"):
        return replace(recipe, sources=debian_lines(sources, release))
    # apt reads the key by an absolute path, which must not depend on the clone; the host has its own copy.
    key = CACHE / UBUNTU_KEY.name
    lines = ubuntu_lines(ubuntu_mirror(sources, release), release, key)
    keyring = f'sed --in-place s,{key},{UBUNTU_KEYRING}, "$1"/etc/apt/sources.list'
    return replace(recipe, sources=lines, packages=(*PACKAGES, *UBUNTU_PACKAGES), hooks=(*recipe.hooks, keyring))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes, and remove its file afterwards.

    Programs that `run` starts hold it, too: if this process is killed, they still end before the next one begins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as file:
            fcntl.fcntl(file, fcntl.F_SETFD, 0)  # not closed on exec
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue
            except FileNotFoundError:  # the previous holder has removed the file
                continue
            try:
                yield
            finally:
                path.unlink()
            return


def remove(directory: Path) -> None:
    """Remove a directory, except file systems that are mounted in it."""
    run(["rm", "--recursive", "--force", "--one-file-system", str(directory)], f"remove {directory}")


def cached(recipe: Recipe) -> Path:
    """Return a root file system, and build it if it is not cached.

    Raises `ToolError` if the build fails; no partial root file system remains.
    """
    # The name is unique to this process: a builder whose parent was killed keeps writing to its own directory.
    directory = recipe.root.parent
    partial = directory.with_suffix(f".{os.getpid()}.partial")
    with locked(directory.with_suffix(".lock")):
        if not directory.exists():
            say(f"Building a root file system of {recipe.title}; this takes about half a minute and happens once")
            (CACHE / UBUNTU_KEY.name).write_bytes(UBUNTU_KEY.read_bytes())
            try:
                partial.mkdir()
                # mmdebstrap passes a descriptor to sh by its number, and Debian's sh supports only one digit: inherit none.
                run(recipe.command(partial / "root"), f"build a root file system of {recipe.title}", close_fds=True)
                partial.chmod(0o700)
                partial.rename(directory)
            finally:
                remove(partial)
        os.utime(directory)
    return recipe.root


def remove_unused(used: Collection[str]) -> None:
    """Remove root file systems that were not requested for two weeks, except `used` ones, and the remains of killed builds."""
    for root in CACHE.glob("*-*/root"):
        if str(root) not in used and time.time() - root.parent.stat().st_mtime > UNUSED_AFTER:
            remove(root.parent)
