"""Generate the reference documentation of keys, variables and plugins.

``make docs`` writes the annotated example, the reference and the JSON Schema of an app's keys from the model, the variables of
each role from its argument specs, and the page of modules and filters from their ``DOCUMENTATION``. ``--check`` only compares.
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
from tools.json_schema import json_schema

ROOT = Path(__file__).resolve().parents[1]
#: Entry points of the role ``app``: short description and description.
ENTRY_POINTS = {
    "main": (
        "Build a release of each app, switch to it and serve its site",
        "Requires the roles python, supervisor and nginx. Apps that are up to date are not touched.",
    ),
    "preflight": ("Report every mistake of the entries in one message, before anything changes", "Changes nothing."),
    "remove": (
        "Remove the apps of app_names, which must no longer be in tornado_apps, and everything they own from the host",
        "Resources shared with other apps stay.",
    ),
}
#: Other variables of the role ``app``: type, default and description.
OPTIONS = {
    "app_names": ("list of str", "[]", "Apps to process; all of C(tornado_apps) if empty."),
    "app_proxy": (
        "str",
        "nginx",
        "Reverse proxy of the apps. C(haproxy) connects the role haproxy directly to their sockets, on a host without load "
        "balancers. Features of nginx are then refused: C(static), C(paths), C(basic_auth), C(limits), C(maintenance), C(port), "
        "C(prefix) and the like.",
    ),
    "app_versions": ("dict", "{}", "Versions to deploy instead of the versions in the entries, by app."),
    "app_acme_peers": (
        "list",
        "[]",
        "IP addresses of other hosts that get ACME certificates for the same names; each of them answers the challenges of all.",
    ),
    "app_tls": ("bool", "true", "Whether this host terminates TLS for the apps; false behind a load balancer that does."),
    "app_wait": ("int", "60", "Seconds to wait for another deploy of an app on the host."),
    "app_preempt": ("bool", "false", "Whether to preempt another deploy of an app on the host, instead of waiting for it."),
    "app_again": ("bool", "false", "Whether to deploy a release that was rolled back from, although its inputs are the same."),
}

#: Groups of the annotated example: title, and the keys of an entry in their order.
GROUPS = {
    "Source and environment": ("source", "python", "build", "packages", "env", "secrets", "services"),
    "Processes": ("run", "processes", "workers", "affinity", "port", "open_files", "debug", "watch"),
    "Deploy": ("health", "hooks", "drain", "soak", "soak_errors", "keep_releases", "depends_on", "shared"),
    "Site": ("domains", "aliases", "prefix", "static", "paths", "headers", "extra"),
    "TLS": ("tls",),
    "Limits and access": ("upload_size", "read_timeout", "limits", "allow", "deny", "basic_auth"),
    "Load balancing": ("balance",),
    "Maintenance mode": ("maintenance",),
}

#: Values of the annotated example, where the default does not show the use of a key.
EXAMPLES: dict[str, Any] = {
    "source.path": "../shop",
    "depends_on": ["accounts"],
    "source.git": "git@git.example.com:shop.git",
    "source.archive": "https://example.com/shop-1.4.0.tar.gz",
    "source.package": "shop[redis]",
    "source.requirements": ["gunicorn==23.0.0"],
    "source.push": "main",
    "source.keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA alice"],
    "source.directory": "/home/alice/shop",
    "source.version": "v1.4.0",
    "source.checksum": f"sha256:{'0123456789abcdef' * 4}",
    "source.subdirectory": "backend",
    "source.deploy_key": "{{ vault_shop_deploy_key }}",
    "source.host_key": "git.example.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA",
    "python.version": "3.13",
    "build.env": {"NODE_ENV": "production"},
    "env": {"SHOP_CURRENCY": "EUR"},
    "secrets": {"SHOP_COOKIE_SECRET": "{{ vault_shop_cookie_secret }}"},
    "services.mongodb.hosts": ["db1.example.com", "db2.example.com", "db3.example.com"],
    "services.mongodb.database": "shop",
    "services.mongodb.user": "shop",
    "services.mongodb.password": "{{ vault_shop_mongodb }}",
    "services.mongodb.auth_database": "shop",
    "services.mongodb.replica_set": "rs0",
    "services.etcd.endpoints": ["https://etcd1.example.com:2379"],
    "services.etcd.user": "shop",
    "services.etcd.password": "{{ vault_shop_etcd }}",
    "services.etcd.ca": "/etc/ssl/etcd/ca.pem",
    "services.syslog.host": "logs.example.com",
    "run.app": "shop.web:make_app",
    "run.wsgi": "shop.wsgi:application",
    "run.asgi": "shop.asgi:application",
    "run.threads": 20,
    "run.loop": "uvloop",
    "run.command": "python -m shop --socket={socket}",
    "run.procfile": "web",
    "affinity": "cookie",
    "workers.*.command": "python -m shop.queue --number={process}",
    "workers.*.count": 2,
    "workers.*.stop_timeout": 300,
    "workers.*.stop_signal": "INT",
    "port": 8100,
    "open_files": 16384,
    "debug": True,
    "watch": ["config.yml"],
    "shared.*.url": "/media/",
    "shared.*.backup": True,
    "packages": ["ffmpeg"],
    "health.path": "/healthz",
    "health.status": [200, 401, "300-399"],
    "health.headers": {"X-Health": "deploy"},
    "hooks.build": "python -m shop.assets",
    "hooks.before_start.command": "python -m shop.migrate",
    "hooks.before_start.once": True,
    "hooks.before_switch.command": "python -m shop.warm_up",
    "hooks.after_switch": "python -m shop.announce",
    "soak": 30,
    "domains": ["shop.example.com"],
    "aliases": ["www.shop.example.com"],
    "prefix": "/api/",
    "paths.*.read_timeout": 3600,
    "paths.*.buffering": False,
    "paths.*.upload_size": "2g",
    "paths.*.limits.requests": 5,
    "paths.*.limits.burst": 20,
    "paths.*.limits.connections": 2,
    "paths.*.allow": ["10.0.0.0/8"],
    "paths.*.deny": ["10.9.0.0/16"],
    "paths.*.extra": "gzip off;",
    "headers": {"Permissions-Policy": "camera=()"},
    "extra": "gzip off;",
    "tls.provider": "acme",
    "tls.challenge": "dns",
    "tls.names": ["*.example.com", "*.shop.example.com"],
    "tls.certificate": "files/shop.pem",
    "tls.key": "files/shop.key",
    "tls.hsts": 31536000,
    "limits.requests": 50,
    "limits.burst": 100,
    "limits.connections": 20,
    "allow": ["192.0.2.0/24"],
    "deny": ["192.0.2.66"],
    "basic_auth": {"alice": "$6$pHj3lBcy$dV2"},
    "balance.connections": 500,
    "maintenance.page": "<h1>Back soon</h1>",
    "maintenance.allow": ["10.0.0.0/8"],
}

#: Keys that the annotated example shows as comments, because other keys of it exclude them.
ALTERNATIVES = {
    *("source.path", "source.archive", "source.checksum", "source.package", "source.requirements"),
    *("source.push", "source.keys", "source.directory", "source.subdirectory"),
    *("run.wsgi", "run.asgi", "run.threads", "run.loop", "run.command", "run.procfile", "port", "debug", "watch"),
    *("prefix", "tls.certificate", "tls.key"),
}

#: Names in the annotated example for keys that are chosen by the user.
EXAMPLE_NAMES = {"paths.*": "/live/", "shared.*": "media", "workers.*": "queue"}

#: Plugins on the page of modules and filters, by kind.
PLUGINS = {"module": sorted((ROOT / "plugins/modules").glob("*.py")), "filter": sorted((ROOT / "plugins/filter").glob("*.py"))}
PLUGINS_PAGE = ROOT / "docs/plugins.md"
REFERENCE = ROOT / "docs/reference.md"
JSON_SCHEMA = ROOT / "docs/tornado_apps.schema.json"

#: Maximum length of a default that is shown in a table.
MAX_DEFAULT_LENGTH = 60


def pages() -> dict[Path, Callable[[], str]]:
    """Return the generated files, each with the function that returns its text."""
    return {
        ROOT / "roles/app/meta/argument_specs.yml": argument_specs,
        **{page: partial(role_page, page) for page in sorted(ROOT.glob("roles/*/README.md"))},
        PLUGINS_PAGE: plugins_page,
        REFERENCE: reference_page,
        JSON_SCHEMA: entries_schema,
    }


def role_page(page: Path) -> str:
    """Return the README of a role with its generated parts."""
    specs = argument_specs() if page.parent.name == "app" else (page.parent / "meta/argument_specs.yml").read_text()
    text = _filled(page, page.read_text(), "variables", variables(yaml.safe_load(specs)["argument_specs"]))
    match page.parent.name:
        case "app":
            return _filled(page, text, "example", f"```yaml\n{example()}```\n")
        case "haproxy":
            return _filled(page, text, "keys", schema_keys(Backend))
    return text


def variables(entry_points: Mapping[str, Any]) -> str:
    """Return a role's variables as a Markdown table: first those of ``main``, then those of other entry points."""
    rows: dict[str, str] = {}
    for name, entry in entry_points.items():
        suffix = "" if name == "main" else f" For `tasks_from: {name}`."
        for path, option in _paths(entry["options"]):
            # The keys of an app are in the reference.
            if path not in rows and path != VARIABLE:
                rows[path] = _row(path, option, f"../../{PLUGINS_PAGE.relative_to(ROOT)}", suffix)
    return "".join(["| variable | type | default | |\n", "|---|---|---|---|\n", *rows.values()])


def schema_keys(schema: type) -> str:
    """Return the keys of a schema as a Markdown table."""
    rows = (f"| `{key.path}` | {key.type} | {_default(key)} | {_markdown(key.text)}{_bounds(key)} |\n" for key in keys(schema))
    return "".join(["| key | type | default | |\n", "|---|---|---|---|\n", *rows])


def reference_page() -> str:
    """Return the reference of all keys of an app."""
    return (
        "<!-- Generated by `make docs` from plugins/module_utils/app. -->\n# Keys of an app\n\n"
        f"Keys of an entry of `{VARIABLE}`. [roles/app](../roles/app/README.md#an-annotated-entry) has an annotated entry.\n\n"
        f"{schema_keys(App)}"
    )


def entries_schema() -> str:
    """Return the JSON Schema of a file with variables: of its ``tornado_apps``."""
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": f"Variables with the entries of {VARIABLE}; generated by `make docs` from plugins/module_utils/app",
        "type": "object",
        "properties": {VARIABLE: {"type": "object", "additionalProperties": json_schema(App)}},
    }
    return f"{json.dumps(schema, indent=1)}\n"


def example() -> str:
    """Return the annotated example: an entry with every key, in YAML.

    :raises ValueError: if a key of the model has no group or no value to show.
    """
    described = list(keys(App))
    top_level = [key.path for key in described if "." not in key.path]
    if missing := set(top_level) ^ {name for names in GROUPS.values() for name in names}:
        raise ValueError(f"GROUPS must have exactly the keys of the model; check {', '.join(sorted(missing))}")
    parents = {key.path.rpartition(".")[0] for key in described}
    lines = [f"{VARIABLE}:", "  shop:"]
    for title, names in GROUPS.items():
        lines += ["", f"    # {title}"]
        for name in names:
            for key in described:
                if key.path.partition(".")[0] == name:
                    lines += _example_lines(key, parents)
    return "".join(f"{_aligned(line)}\n" for line in lines)


def _example_lines(key: Key, parents: set[str]) -> Iterator[str]:
    """Yield the lines of a key in the annotated example; ``#:`` separates the setting from its description."""
    *outer, name = key.path.split(".")
    indent = "    " + "  " * len(outer)
    text = f" #: {_first_sentence(key.text)}"
    if key.path in parents:
        yield f"{indent}{name}:{text}"
    elif (items := f"{key.path}.*") in parents:
        yield f"{indent}{name}:{text}"
        yield f"{indent}  {EXAMPLE_NAMES[items]}:"
    else:
        value = EXAMPLES.get(key.path, key.default)
        if value in (None, "", [], {}):
            raise ValueError(f"EXAMPLES has no value for {key.path}")
        literal = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
        yield f"{indent}{'# ' if key.path in ALTERNATIVES else ''}{name}: {literal}{text}"


def _aligned(line: str) -> str:
    """Return ``line`` with its description in a column of its own."""
    setting, separator, text = line.partition(" #: ")
    return f"{setting:44}  # {text}" if separator else line


def _first_sentence(text: str) -> str:
    """Return the first sentence of a description, without Ansible's markup and a period."""
    return re.sub(r"\bC\((.+?)\)", r"\1", re.split(r"\. (?=[A-Z])", text, maxsplit=1)[0]).removesuffix(".")


def plugins_page() -> str:
    """Return the page of all modules and filters."""
    parts = [
        "<!-- Generated by `make docs` from the DOCUMENTATION of the plugins. -->\n# Modules and filters\n\n"
        "The plugins that the roles use. Any playbook can use them by their full name, such as `funnel.tornado.packages`.\n"
    ]
    documented = {kind: [documentation(plugin) for plugin in plugins] for kind, plugins in PLUGINS.items()}
    for kind, plugins in documented.items():
        parts.append(f"\n| {kind} | |\n|---|---|\n")
        parts += (f"| [{plugin[kind]}](#{plugin[kind]}) | {plugin['short_description']} |\n" for plugin in plugins)
    for kind, plugins in documented.items():
        parts += [f"\n## The {kind}s\n", *(section for plugin in plugins for section in _plugin(kind, plugin))]
    return "".join(parts)


def documentation(plugin: Path) -> dict[str, Any]:
    """Return the ``DOCUMENTATION`` of a module or filter, with its ``EXAMPLES`` as text and its ``RETURN``.

    :raises ValueError: if one of them is missing.
    """
    texts = dict(re.findall(r'^(DOCUMENTATION|EXAMPLES|RETURN) = r"""(.*?)"""', plugin.read_text(), re.DOTALL | re.MULTILINE))
    if missing := {"DOCUMENTATION", "EXAMPLES", "RETURN"} - texts.keys():
        raise ValueError(f"{plugin}: has no {' and no '.join(sorted(missing))}")
    described: dict[str, Any] = yaml.safe_load(texts["DOCUMENTATION"])
    returned = yaml.safe_load(texts["RETURN"]) or {}
    return {"filter": described.get("name"), **described, "examples": texts["EXAMPLES"].lstrip("\n"), "return": returned}


def _plugin(kind: str, plugin: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n### {plugin[kind]}\n\n{plugin['short_description']}.\n\n"
    yield from (f"- {_markdown(line)}\n" for line in _lines(plugin["description"]))
    if plugin.get("options"):
        yield "\n| option | type | default | |\n|---|---|---|---|\n"
        yield from (_row(path, option) for path, option in _paths(plugin["options"]))
    if "attributes" in plugin:
        yield "\n"
        for mode, attribute in plugin["attributes"].items():
            text = " ".join(["", *_lines(attribute.get("description", []))])
            yield f"- {mode.replace('_', ' ').capitalize()}: {attribute['support']}.{_markdown(text)}\n"
    yield f"\n```yaml\n{plugin['examples']}```\n"
    if plugin["return"]:
        yield "\n| return value | type | |\n|---|---|---|\n"
        for path, value in _paths(plugin["return"]):
            returned = f" Returned: {_markdown(value['returned'])}." if value.get("returned", "success") != "success" else ""
            yield f"| `{path}` | {_type(value)} | {_cell(value['description'])}{returned} |\n"


def argument_specs() -> str:
    """Return ``meta/argument_specs.yml`` of the role ``app``, whose entry points have the same options."""
    lines = [_item("The apps of the host, by name. The keys of each:"), *map(_item, _spec_lines())]
    options = f"      tornado_apps:\n        type: dict\n        required: true\n        description:\n{''.join(lines)}"
    for option, (kind, default, text) in OPTIONS.items():
        options += f"      {option}:\n{_type_lines(kind)}        default: {default}\n        description:\n{_item(text)}"
    specs = "---\n# Generated by `make docs` from plugins/module_utils/app/model.py.\nargument_specs:\n"
    for name, (short, description) in ENTRY_POINTS.items():
        specs += f"  {name}:\n    short_description: {short}\n    description: {description}\n    options: "
        specs += f"&options\n{options}" if name == "main" else "*options\n"
    return specs


def _item(text: str) -> str:
    """Return ``text`` as a quoted item of a YAML list, wrapped where YAML folds the line break into a space."""
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
    """Return a page with a table between its two markers.

    :raises ValueError: if the page lacks the markers.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"{page}: has no lines {begin.strip()} and {end} for the output of `make docs`")
    return f"{before}{begin}{table}{end}{after}"


def _paths(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the path of each option or return value, including nested ones, with its description."""
    for name, option in options.items():
        yield f"{prefix}{name}", option
        nested = option.get("options") or option.get("suboptions") or option.get("contains") or {}
        yield from _paths(nested, f"{prefix}{name}.")


def _row(path: str, option: Mapping[str, Any], plugins: str = "", suffix: str = "") -> str:
    """Return an option as a table row; ``plugins`` is the link to the page of plugins, if on another page."""
    default = "**required**" if option.get("required") else ""
    if "default" in option:
        literal = yaml.safe_dump(option["default"], default_flow_style=True, width=1000).removesuffix("...\n").strip()
        default = (
            f"`{literal.replace(chr(39), chr(34))}`" if len(literal) <= MAX_DEFAULT_LENGTH else "[defaults](defaults/main.yml)"
        )
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
    """Convert Ansible's markup to Markdown; ``plugins`` is the link to the page of plugins, if on another page."""
    text = re.sub(r"[MP]\(funnel\.tornado\.(\w+)(?:#\w+)?\)", rf"[\1]({plugins}#\1)", text)
    text = re.sub(r"L\(([^,]+),\s*([^)]+)\)", r"[\1](\2)", text)
    return re.sub(r"\b(?:[COVM]|RV)\((.+?)\)", r"`\1`", text)


def main() -> int:
    """Write the pages, or report the stale ones; return the exit status."""
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
