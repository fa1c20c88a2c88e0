"""Sites of nginx that claim a server name which another site has: nginx serves the first, and only warns about the second."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_WARNING = re.compile(r'conflicting server name "([^"]+)"')
_SERVER_NAMES = re.compile(r"^[^#\n]*?\bserver_name\s+([^;]*);", re.MULTILINE)


def name_conflicts(output: str, root: Path, own: Sequence[str]) -> str:
    """Return the conflicts of our sites with others that ``nginx -t`` warned about; empty without one.

    :arg root: the validated configuration directory, which the messages replace with nginx's own.
    :arg own: our files in it, relative to it.
    """
    problems = []
    for name in dict.fromkeys(_WARNING.findall(output)):
        found = list(places(root, name))
        others = [place for place, file in found if file not in own]
        if others and len(others) < len(found):
            problems.append(f"server name {name} is also in {' and in '.join(others)}: remove it there, or from the domains here")
    return "\n".join(problems)


def places(root: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yield each place of a server name in nginx's configuration: file and line, and the file relative to ``root``."""
    for file in sorted(
        [*root.glob("*.conf"), *root.glob("conf.d/*.conf"), *root.glob("sites-enabled/*"), *root.glob("funnel/*.conf")]
    ):
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        for names in _SERVER_NAMES.finditer(text):
            if name in names[1].split():
                relative = str(file.relative_to(root))
                yield f"/etc/nginx/{relative}, line {text.count(chr(10), 0, names.start(1)) + 1}", relative
