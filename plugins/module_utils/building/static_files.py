"""Static files of a release that nginx serves: hard links in directories of their own, by URL path and by content hash."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.building.environment import Environment
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError

#: Maximum number of static files, as links to directories can multiply them.
MAX_FILES = 200_000

#: Maximum depth of their directories, including those that links lead to.
MAX_DEPTH = 100

#: Seconds in which they are published.
MAX_SECONDS = 900.0

#: Suffixes of files that nginx compresses, and their maximum total size per release; nginx compresses others per request.
COMPRESSIBLE = (".css", ".html", ".js", ".json", ".map", ".mjs", ".svg", ".txt", ".webmanifest", ".xml")
MAX_COMPRESSED_BYTES = 32 << 20


def publish_static(app: App, work: Path, environment: Environment) -> None:
    """Make only the static files readable by nginx, as hard links, with a compressed variant beside each file of text.

    :raises BuildError: when the directory is missing, or a link in it leads to files that nginx must not serve from there.
    """
    if not app.static:
        return
    top = (environment.packages if app.source.package is not None else work / "src").resolve()
    files = top / app.static.path
    key = f"{VARIABLE}.{app.name}.static.path"
    if not files.is_dir():
        raise BuildError(f"{key}: the source has no directory {app.static.path}")
    root = files.resolve()
    if not root.is_relative_to(top):
        raise BuildError(f"{key}: {app.static.path} points outside the source, to {root}")
    versions = work / "versions"
    versions.mkdir(mode=0o755)
    shared = {top / path for path in app.shared_paths}
    budget = MAX_COMPRESSED_BYTES
    variants: set[Path] = set()
    for path, target, content in _Walk(key, top, root, shared).files(root, work / "public" / app.static.url.strip("/")):
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.link(content, target)
        version = _publish_version(content, path.name, versions)
        variant = version.with_name(f"{version.name}.gz")
        size = content.stat().st_size
        if path.suffix in COMPRESSIBLE and size <= budget and not variant.exists():
            budget -= size
            if _compress(content, variant):
                variants.add(variant)
        # A variant in the source has a name of its own.
        if variant in variants and not os.path.lexists(path.with_name(f"{path.name}.gz")):
            os.link(variant, target.with_name(f"{target.name}.gz"))


@dataclass
class _Walk:
    """Finds static files. Links are followed as Tornado does, so that the same URLs are served.

    ``top``, and everything in it, belongs to root; ``root`` is the directory of the static files. Both have no links in their
    paths: a link into the shared data would lead wherever the app says at the moment. Links that lead nowhere, to a directory
    that is being walked or around them, or to other files of the source are skipped, as are the paths of ``shared``, which have
    their own URLs.
    """

    key: str
    top: Path
    root: Path
    shared: Collection[Path]
    count: int = 0
    deadline: Deadline = field(default_factory=lambda: Deadline(MAX_SECONDS))

    def files(self, directory: Path, public: Path, walked: tuple[Path, ...] = ()) -> Iterator[tuple[Path, Path, Path]]:
        """Yield the path of each file of a directory, its path in ``public``, and the regular file that it is or leads to.

        :arg directory: a directory in ``root``, without links in its path.
        :arg walked: the directories through which the walk came here, to which links may lead back.
        :raises BuildError: for a link that leads out of ``top``, for too many or too deep files, and when they take too long.
        """
        walked = (*walked, directory)
        if len(walked) > MAX_DEPTH:
            raise BuildError(f"{self.key}: more than {MAX_DEPTH} directories are nested, including those that links lead to")
        for path in sorted(directory.iterdir()):
            self.count += 1
            if self.count > MAX_FILES:
                raise BuildError(f"{self.key}: there are more than {MAX_FILES} files, including those that links lead to")
            if self.deadline.expired:
                raise BuildError(f"{self.key}: the files cannot be published within {MAX_SECONDS:g} s")
            content = self._content(path)
            if content is None or content in walked:
                continue
            if content.is_dir():
                yield from self.files(content, public / path.name, walked)
            else:
                yield path, public / path.name, content

    def _content(self, path: Path) -> Path | None:
        """Return the regular file or directory that a path is or leads to; None if it is skipped."""
        if path in self.shared:
            return None
        if not path.is_symlink():
            return path
        try:
            content = path.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: a loop, before Python 3.13
            return None
        if not content.is_relative_to(self.top):
            raise BuildError(
                f"{self.key}: {path.name} in {path.parent.name} is a link to {content}, outside the source, which nginx does not "
                "serve; remove it. If the app writes there, add the path to shared, with a url"
            )
        return content if content.is_relative_to(self.root) and not path.is_relative_to(content) else None


def _publish_version(path: Path, name: str, versions: Path) -> Path:
    """Publish a file and its compressed variant under the version that ``tornado.web.StaticFileHandler`` computes for it.

    The version is the SHA-512 of the content in hexadecimal; the suffix of ``name`` is kept, as nginx derives the MIME type
    from it. Return the path of the published file.
    """
    with path.open("rb") as file:
        version = hashlib.file_digest(file, "sha512").hexdigest()
    suffix = re.search(r"\.[A-Za-z0-9]+$", name)
    published = versions / f"{version}{suffix[0] if suffix else ''}"
    compressed = path.with_name(f"{path.name}.gz")
    for source, target in ((path, published), (compressed, published.with_name(f"{published.name}.gz"))):
        if source.is_file() and not source.is_symlink() and not target.exists():
            os.link(source, target)
    return published


def _compress(path: Path, target: Path) -> bool:
    """Write the compressed variant of a file if it is smaller, and return whether it is.

    It has the time of the file, so that its ETag changes with the file only.
    """
    content = path.read_bytes()
    compressed = gzip.compress(content, mtime=0)
    if len(compressed) >= len(content):
        return False
    target.write_bytes(compressed)
    target.chmod(0o644)
    modified = path.stat().st_mtime_ns
    os.utime(target, ns=(modified, modified))
    return True
