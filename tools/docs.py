"""Write what the documentation says of keys, variables and plugins, from what these say themselves.

``make docs`` writes: an app's keys from the model, each role's variables from its argument specs, and a page of all modules and
filters from their own documentation. ``--check`` only compares.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import Key, keys
from ansible_collections.funnel.tornado.plugins.plugin_utils.haproxy_rendering import Backend

ROOT = Path(__file__).resolve().parents[1]
#: The role's files of tasks that others may call, with what they are for.
ENTRY_POINTS = {
    "main": (
        "Build a release of each app, switch to it and serve its site",
        "Expects what the roles python, supervisor and nginx lay down. An app that is as its entry says is left alone.",
    ),
    "preflight": ("Refuse every mistake of the entries in one message, before anything has changed", "Changes nothing."),
    "remove": (
        "Take the apps of app_names, which tornado_apps must no longer have, off the host with all they own",
        "What is shared with other apps stays.",
    ),
}
#: The role's other variables: type, default, and what they are for.
OPTIONS = {
    "app_names": ("list of str", "[]", "Apps that are dealt with; all of C(tornado_apps) if empty."),
    "app_proxy": (
        "str",
        "nginx",
        "What leads to the apps. C(haproxy) is the role of that name straight to their sockets, on a host without balancers. It "
        "is no different for an app but that nothing of what only nginx can do is there: C(static), C(paths), C(basic_auth), "
        "C(limits), C(maintenance), C(port), C(prefix) and the like are refused.",
    ),
    "app_versions": ("dict", "{}", "Versions that take the place of the entries' own, by app."),
    "app_tls": ("bool", "true", "Whether the apps' TLS ends at this host; false behind a balancer that ends it."),
    "app_wait": ("int", "60", "Seconds that another deploy of an app on the host is waited for."),
}

#: What each entry of a role's variable may hold, by the role; nginx's page tells that in tables of its own, as a site has paths
#: and upstreams, a path of it the same keys again, and so on.
SCHEMAS = {"app": App, "haproxy": Backend}

#: The plugins that have a page of their own in the documentation, by what they are called there.
PLUGINS = {"module": sorted((ROOT / "plugins/modules").glob("*.py")), "filter": sorted((ROOT / "plugins/filter").glob("*.py"))}
PLUGINS_PAGE = ROOT / "docs/plugins.md"

#: Letters of a default that fit into a table.
SHORT = 60


def pages() -> dict[Path, Callable[[], str]]:
    """Return the files that are written, with what makes their texts."""
    return {
        ROOT / "roles/app/meta/argument_specs.yml": argument_specs,
        **{page: partial(role_page, page) for page in sorted(ROOT.glob("roles/*/README.md"))},
        PLUGINS_PAGE: plugins_page,
    }


def role_page(page: Path) -> str:
    """Return a role's page with the tables that are written into it."""
    specs = argument_specs() if page.parent.name == "app" else (page.parent / "meta/argument_specs.yml").read_text()
    text = _filled(page, page.read_text(), "variables", variables(yaml.safe_load(specs)["argument_specs"]))
    schema = SCHEMAS.get(page.parent.name)
    return _filled(page, text, "keys", schema_keys(schema)) if schema else text


def variables(entry_points: Mapping[str, Any]) -> str:
    """Return a role's variables as a table in Markdown: those of ``main`` first, then what only other tasks have."""
    rows: dict[str, str] = {}
    for name, entry in entry_points.items():
        suffix = "" if name == "main" else f" For `tasks_from: {name}`."
        for path, option in _paths(entry["options"]):
            # An app's keys have a table of their own.
            if path not in rows and path != VARIABLE:
                rows[path] = _row(path, option, f"../../{PLUGINS_PAGE.relative_to(ROOT)}", suffix)
    return "".join(["| variable | type | default | |\n", "|---|---|---|---|\n", *rows.values()])


def schema_keys(schema: type) -> str:
    """Return the keys of a schema as a table in Markdown."""
    rows = (f"| `{key.path}` | {key.type} | {_default(key)} | {_markdown(key.text)}{_bounds(key)} |\n" for key in keys(schema))
    return "".join(["| key | type | default | |\n", "|---|---|---|---|\n", *rows])


def plugins_page() -> str:
    """Return the page of all modules and filters."""
    parts = [
        "<!-- Written by `make docs` from the plugins' own documentation. -->\n# Modules and filters\n\n"
        "What the roles are made of. Each can be used by any playbook, by its full name, such as `funnel.tornado.packages`.\n"
    ]
    documented = {kind: [documentation(plugin) for plugin in plugins] for kind, plugins in PLUGINS.items()}
    for kind, plugins in documented.items():
        parts.append(f"\n| {kind} | |\n|---|---|\n")
        parts += (f"| [{plugin[kind]}](#{plugin[kind]}) | {plugin['short_description']} |\n" for plugin in plugins)
    for kind, plugins in documented.items():
        parts += [f"\n## The {kind}s\n", *(section for plugin in plugins for section in _plugin(kind, plugin))]
    return "".join(parts)


def documentation(plugin: Path) -> dict[str, Any]:
    """Return what a module or a filter says of itself, with its ``EXAMPLES`` as they stand and its ``RETURN``.

    :raises ValueError: when one of them is missing.
    """
    texts = dict(re.findall(r'^(DOCUMENTATION|EXAMPLES|RETURN) = r"""(.*?)"""', plugin.read_text(), re.DOTALL | re.MULTILINE))
    if missing := {"DOCUMENTATION", "EXAMPLES", "RETURN"} - texts.keys():
        raise ValueError(f"{plugin}: has no {' and no '.join(sorted(missing))}")
    said: dict[str, Any] = yaml.safe_load(texts["DOCUMENTATION"])
    returned = yaml.safe_load(texts["RETURN"]) or {}
    return {"filter": said.get("name"), **said, "examples": texts["EXAMPLES"].lstrip("\n"), "return": returned}


def _plugin(kind: str, plugin: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n### {plugin[kind]}\n\n{plugin['short_description']}.\n\n"
    yield from (f"- {_markdown(line)}\n" for line in _lines(plugin["description"]))
    if plugin.get("options"):
        yield "\n| option | type | default | |\n|---|---|---|---|\n"
        yield from (_row(path, option) for path, option in _paths(plugin["options"]))
    if "attributes" in plugin:
        yield "\n"
        for mode, told in plugin["attributes"].items():
            said = " ".join(["", *_lines(told.get("description", []))])
            yield f"- {mode.replace('_', ' ').capitalize()}: {told['support']}.{_markdown(said)}\n"
    yield f"\n```yaml\n{plugin['examples']}```\n"
    if plugin["return"]:
        yield "\n| it returns | type | |\n|---|---|---|\n"
        for path, value in _paths(plugin["return"]):
            returned = f" Returned: {_markdown(value['returned'])}." if value.get("returned", "success") != "success" else ""
            yield f"| `{path}` | {_type(value)} | {_cell(value['description'])}{returned} |\n"


def argument_specs() -> str:
    """Return the role app's ``meta/argument_specs.yml``."""
    head = "---\n# Written by `make docs` from plugins/module_utils/app/model.py.\nargument_specs:\n"
    lines = [_item("The apps of the host, by name. The keys of each:"), *map(_item, _spec_lines())]
    return head + "".join(
        f"  {name}:\n    short_description: {short}\n    description: {description}\n    options:\n"
        f"      tornado_apps:\n        type: dict\n        required: true\n        description:\n{''.join(lines)}"
        + "".join(
            f"      {option}:\n{_type_lines(kind)}        default: {default}\n        description:\n{_item(text)}"
            for option, (kind, default, text) in OPTIONS.items()
        )
        for name, (short, description) in ENTRY_POINTS.items()
    )


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


def _filled(page: Path, text: str, name: str, table: str) -> str:
    """Return a page with a table between its two marks.

    :raises ValueError: when the page does not have them.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"{page}: has no lines {begin.strip()} and {end}, between which `make docs` writes")
    return f"{before}{begin}{table}{end}{after}"


def _paths(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield options, or what is returned, by their paths, with what is inside them."""
    for name, option in options.items():
        yield f"{prefix}{name}", option
        inside = option.get("options") or option.get("suboptions") or option.get("contains") or {}
        yield from _paths(inside, f"{prefix}{name}.")


def _row(path: str, option: Mapping[str, Any], plugins: str = "", suffix: str = "") -> str:
    """Return an option as a row of a table; ``plugins`` is where the page of plugins is, if not here."""
    default = "**required**" if option.get("required") else ""
    if "default" in option:
        literal = yaml.safe_dump(option["default"], default_flow_style=True, width=1000).removesuffix("...\n").strip()
        default = f"`{literal.replace(chr(39), chr(34))}`" if len(literal) <= SHORT else "[defaults](defaults/main.yml)"
    return f"| `{path}` | {_type(option)} | {default} | {_cell(option['description'], plugins)}{suffix} |\n"


def _type_lines(kind: str) -> str:
    kind, _, elements = kind.partition(" of ")
    return f"        type: {kind}\n" + (f"        elements: {elements}\n" if elements else "")


def _type(option: Mapping[str, Any]) -> str:
    kind: str = option.get("type", "str")
    item = " or ".join(f'"{choice}"' for choice in option["choices"]) if "choices" in option else option.get("elements", kind)
    return f"list of {item}" if kind == "list" else item


def _cell(description: str | list[str], plugins: str = "") -> str:
    return _markdown(" ".join(_lines(description)), plugins).replace("|", "\\|")


def _lines(description: str | list[str]) -> list[str]:
    return [description] if isinstance(description, str) else description


def _markdown(text: str, plugins: str = "") -> str:
    """Turn Ansible's markup into Markdown's; ``plugins`` is where the page of plugins is, if not here."""
    text = re.sub(r"[MP]\(funnel\.tornado\.(\w+)(?:#\w+)?\)", rf"[\1]({plugins}#\1)", text)
    text = re.sub(r"L\(([^,]+),\s*([^)]+)\)", r"[\1](\2)", text)
    return re.sub(r"\b(?:[COVM]|RV)\((.+?)\)", r"`\1`", text)


def main() -> int:
    """Write the pages, or name the stale ones; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is stale")
    check = parser.parse_args().check
    texts = {path: write() for path, write in pages().items()}
    stale = {path: text for path, text in texts.items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        sys.stderr.write(f"{path.relative_to(ROOT)}: {'is stale; run `make docs`' if check else 'written'}\n")
        if not check:
            path.write_text(text)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
