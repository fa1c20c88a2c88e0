"""Write what the documentation says of an app's keys, from the model: ``make docs``; ``--check`` only compares."""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.app_model import App
from ansible_collections.funnel.tornado.plugins.module_utils.schema import Key, keys

ROOT = Path(__file__).resolve().parents[1]
#: The role's files of tasks that others may call, with what they are for.
ENTRY_POINTS = {
    "main": "Build a release of each app, switch to it and serve its site",
    "preflight": "Refuse every mistake of the entries in one message, before anything has changed",
    "remove": "Take the apps of app_names, which tornado_apps must no longer have, off the host with all they own",
}
#: The role's other variables: type, default, and what they are for.
OPTIONS = {
    "app_names": ("list", "[]", "Apps that are dealt with; all of C(tornado_apps) if empty."),
    "app_proxy": (
        "str",
        "nginx",
        "What leads to the apps. C(haproxy) is for a host without balancers, and apps that want nothing only nginx can do.",
    ),
    "app_versions": ("dict", "{}", "Versions that take the place of the entries' own, by app."),
    "app_tls": ("bool", "true", "Whether the apps' TLS ends at this host; false behind a balancer that ends it."),
    "app_wait": ("int", "60", "Seconds that another deploy of an app on the host is waited for."),
}

TABLE = re.compile(r"(<!-- keys: begin -->\n).*(<!-- keys: end -->)", re.DOTALL)


def table() -> str:
    """Return the keys as a table in Markdown."""
    rows = (f"| `{key.path}` | {key.type} | {_default(key)} | {_markdown(key.text)}{_bounds(key)} |\n" for key in keys(App))
    return "".join(["| key | type | default | |\n", "|---|---|---|---|\n", *rows])


def argument_specs() -> str:
    """Return the role app's ``meta/argument_specs.yml``."""
    head = "---\n# Written by `make docs` from plugins/module_utils/app_model.py.\nargument_specs:\n"
    lines = [_item("The apps of the host, by name. The keys of each:"), *map(_item, _spec_lines())]
    return head + "".join(
        f"  {name}:\n    short_description: {short}\n    options:\n"
        f"      tornado_apps:\n        type: dict\n        required: true\n        description:\n{''.join(lines)}"
        + "".join(
            f"      {option}:\n        type: {kind}\n        default: {default}\n        description: {json.dumps(text)}\n"
            for option, (kind, default, text) in OPTIONS.items()
        )
        for name, short in ENTRY_POINTS.items()
    )


def pages() -> dict[Path, str]:
    """Return the files that are written, with their texts."""
    readme = ROOT / "roles/app/README.md"
    return {
        ROOT / "roles/app/meta/argument_specs.yml": argument_specs(),
        readme: TABLE.sub(lambda match: match[1] + table() + match[2], readme.read_text()),
    }


def _item(text: str) -> str:
    """Return ``text`` as an item of a YAML list: quoted, and broken where YAML folds the break into a space again."""
    return textwrap.fill(json.dumps(text), 120, initial_indent=" " * 10 + "- ", subsequent_indent=" " * 12) + "\n"


def _spec_lines() -> Iterator[str]:
    for key in keys(App):
        yield f"C({key.path}) ({key.type}, {'required' if key.required else 'optional'}) - {key.text}"


def _default(key: Key) -> str:
    if key.required:
        return "**required**"
    return f"`{key.default}`" if key.default not in (None, "", [], {}) else ""


def _bounds(key: Key) -> str:
    return f" Must be {key.bounds}." if key.bounds else ""


def _markdown(text: str) -> str:
    """Turn Ansible's markup into Markdown's."""
    return re.sub(r"C\((.+?)\)", r"`\1`", text)


def main() -> int:
    """Write the pages, or name the stale ones; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is not what the model says")
    check = parser.parse_args().check
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        sys.stderr.write(f"{path.relative_to(ROOT)}: {'is stale; run `make docs`' if check else 'written'}\n")
        if not check:
            path.write_text(pages()[path])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
