"""Write what the documentation says of an app's keys, from the model: ``make docs``; ``--check`` only compares."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from ansible_collections.funnel.tornado.plugins.module_utils.app_model import App
from ansible_collections.funnel.tornado.plugins.module_utils.schema import Key, keys

ROOT = Path(__file__).resolve().parents[1]
TABLE = re.compile(r"(<!-- keys: begin -->\n).*(<!-- keys: end -->)", re.DOTALL)


class _Dumper(yaml.SafeDumper):
    """Writes what yamllint accepts: lists indented, nothing shared between the entry points."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def table() -> str:
    """Return the keys as a table in Markdown."""
    rows = (
        f"| `{key.path}` | {key.type} | {_default(key)} | {_markdown(key.text)}{_bounds(key)} |\n" for key in keys(App)
    )
    return "".join(["| key | type | default | |\n", "|---|---|---|---|\n", *rows])


def argument_specs() -> str:
    """Return the role app's ``meta/argument_specs.yml``."""
    entries = list(_spec_lines())
    options = {
        "tornado_apps": {"type": "dict", "required": True, "description": ["The apps of the host, by name.", *entries]}
    }
    texts = {
        "main": (
            "Build, switch to and serve Tornado apps",
            "Builds a release of each app, switches to it and serves its site.",
        ),
        "preflight": ("Check the apps before anything changes", "Refuses every mistake of the entries in one message."),
    }
    specs = {
        name: {"short_description": short, "description": [text], "options": options}
        for name, (short, text) in texts.items()
    }
    head = "---\n# Written by `make docs` from plugins/module_utils/app_model.py.\n"
    return head + yaml.dump({"argument_specs": specs}, Dumper=_Dumper, sort_keys=False, width=120)


def pages() -> dict[Path, str]:
    """Return the files that are written, with their texts."""
    readme = ROOT / "roles/app/README.md"
    return {
        ROOT / "roles/app/meta/argument_specs.yml": argument_specs(),
        readme: TABLE.sub(lambda match: match[1] + table() + match[2], readme.read_text()),
    }


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
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if a page is not what the model says"
    )
    check = parser.parse_args().check
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        sys.stderr.write(f"{path.relative_to(ROOT)}: {'is stale; run `make docs`' if check else 'written'}\n")
        if not check:
            path.write_text(pages()[path])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
