"""Checks of the documentation: its commands, links and quoted messages."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, nodes

from tools import hosts
from tools.docs import ROOT

#: All pages, except the changelog and the feature list.
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "docs/operations/*.md",
        "docs/recipes/*.md",
        "roles/*/README.md",
        "files/*/README.md",
        ".github/*.md",
    )
    for path in ROOT.glob(pattern)
    if path.name not in ("CHANGELOG.md", "seeds.md")
)

#: Pages whose commands must be complete; the README of a role may have placeholders.
GUIDES = [path for path in PAGES if path.parent in (ROOT, ROOT / "docs", ROOT / "docs/operations", ROOT / "docs/recipes")]

#: Third-party programs that a command in the clone may begin with.
PROGRAMS = {"ansible-galaxy", "ansible-pull", "curl", "export", "git", "molecule", "pytest", "uv"}

#: Programs that a command on a host may begin with: those of Debian and of the roles.
HOST_PROGRAMS = {
    "cat",
    "chown",
    "df",
    "du",
    "grep",
    "ip",
    "journalctl",
    "ls",
    "supervisorctl",
    "tail",
    "/usr/local/sbin/keepalived-check",
}

#: Keys whose values are Jinja expressions without braces.
EXPRESSIONS = {"changed_when", "failed_when", "that", "until", "when"}

JINJA = Environment(autoescape=True)


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in a language, without the indentation of a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def commands(page: Path, language: str = "console") -> list[str]:
    """Return the commands in the code blocks of a page, and those in inline code that run a playbook, make or a tool."""
    lines = [line for block in blocks(page, language) for line in block.splitlines()]
    if language == "console":
        lines += re.findall(r"`((?:ansible-playbook|make|python3 -m|playbooks/\S+\.yml) [^`]+)`", prose(page))
    found = (line.strip() for line in lines)
    return [re.sub("^playbooks/", "ansible-playbook playbooks/", line) for line in found if not line.startswith("#")]


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^( *)```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def command_problem(command: str) -> str:
    """Return what a command refers to that does not exist, or an empty string."""
    words = shlex.split(command, comments=True)
    match words:
        case ["ansible-playbook", *_]:
            return _playbook_problem(words)
        case ["make", *targets]:
            return "; ".join(filter(None, map(_make_problem, targets)))
        case ["python3", "-m", "tools.hosts", *arguments]:
            return _refusal(hosts.parse_arguments, arguments)
        case [program, *arguments] if program in PROGRAMS:
            paths = [word for word in arguments if re.match(r"(molecule|tests|files|docs)/", word)]
            missing = [path for path in paths if not (ROOT / path).exists()]
            return f"there is no {' and no '.join(missing)}" if missing else ""
    return f"{words[:1]} is not an allowed program"


def untested_parts(command: str) -> list[str]:
    """Return the parts of a command that no test covers: a playbook with one of its options, or a command of the test hosts."""
    words = shlex.split(command, comments=True)
    match words:
        case ["ansible-playbook", playbook, *_]:
            keys = [word.partition("=")[0] for before, word in itertools.pairwise(words) if before == "-e" and word[0] != "@"]
            name = Path(playbook).stem.rpartition(".")[2]
            # A test may use the file, the name in the collection, or a function of that name.
            called = rf"{name}\.yml|funnel\.tornado\.{name}\b|\b(run_)?{name}\("
            required = [(called, rf"\b{key}[\"=:]" if key else "") for key in keys or [""]]
        case ["python3", "-m", "tools.hosts", verb, *_]:
            required = [(r"tools\.hosts", f'"{verb}"')]
        case _:
            required = []
    return [" ".join(parts) for parts in required if not any(all(re.search(part, text) for part in parts) for text in _tests())]


@functools.cache
def _tests() -> list[str]:
    patterns = ("molecule/**/*.py", "molecule/*/*.yml", "tests/integration/*.py", "tests/*.py", "tests/support/*.py")
    return [path.read_text() for pattern in patterns for path in ROOT.glob(pattern) if path != Path(__file__)]


def host_command_problem(command: str) -> str:
    """Return what a command on a host refers to that no host has, or an empty string."""
    words = shlex.split(command)
    units = re.findall(r"(?:-u|systemctl \S+) ([\w-]+)", command)
    unknown = [unit for unit in units if unit not in (ROOT / "playbooks/vars/fleet.yml").read_text()]
    return "" if words[0] in HOST_PROGRAMS and not unknown else f"{unknown or words[:1]} is not on a host"


def _make_problem(word: str) -> str:
    name, _, value = word.partition("=")
    if value:
        valid = value.isdigit() if name == "JOBS" else name == "SCENARIO" and (ROOT / f"molecule/{value}/molecule.yml").exists()
    else:
        targets = (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")
        valid = re.search(rf"^{re.escape(name)}:", targets, re.MULTILINE) is not None
    return "" if valid else f"make has no {word}"


def _refusal(parse: Any, arguments: list[str]) -> str:
    """Return the error of a program's argument parser, or an empty string."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.chdir(ROOT):
        try:
            parse(arguments)
        except SystemExit:
            return errors.getvalue().strip().splitlines()[-1]
    return ""


def _playbook_problem(words: list[str]) -> str:
    # The import inspects the terminal.
    from ansible.cli.playbook import PlaybookCLI

    program = PlaybookCLI(words)
    program.init_parser()
    parse: Any = program.parser
    if refused := _refusal(parse.parse_args, words[1:]):
        return refused
    options = parse.parse_args(words[1:])
    # Other projects use the fully qualified name of a playbook.
    playbooks = [ROOT / re.sub(r"^funnel\.tornado\.(\w+)$", r"playbooks/\1.yml", name) for name in options.args]
    paths = [*playbooks, *(ROOT / name for name in options.inventory or ())]
    paths += [ROOT / option[1:] for option in options.extra_vars if option.startswith("@")]
    missing = [str(path.relative_to(ROOT)) for path in paths if not path.exists()]
    if missing:
        return f"there is no {' and no '.join(missing)}"
    read = {name for playbook in playbooks for name in variables_of(playbook)}
    unread = [option for option in options.extra_vars if option[0] != "@" and option.partition("=")[0] not in read]
    return f"{' and '.join(options.args)} does not read {', '.join(unread)}" if unread else ""


@functools.cache
def variables_of(file: Path) -> set[str]:
    """Return the variables that a playbook or one of its files reads, including its imports and roles."""
    return set(_names(yaml.safe_load(file.read_text()), file.parent))


def _names(part: Any, directory: Path, key: str = "") -> Iterator[str]:
    if isinstance(part, dict):
        for name, value in part.items():
            yield from _names(value, directory, str(name).rpartition(".")[2])
    elif isinstance(part, list):
        for item in part:
            yield from _names(item, directory, key)
    elif isinstance(part, str) and key in ("import_playbook", "vars_files", "import_tasks", "include_tasks"):
        yield from variables_of(directory / part)
    elif isinstance(part, str) and part.startswith("funnel.tornado."):
        defaults = ROOT / "roles" / part.rpartition(".")[2] / "defaults/main.yml"
        yield from yaml.safe_load(defaults.read_text()) if defaults.exists() else ()
    elif isinstance(part, str) and (key in EXPRESSIONS or "{{" in part):
        template = f"{{{{ {part} }}}}" if key in EXPRESSIONS and "{{" not in part else part
        yield from (node.name for node in JINJA.parse(template).find_all(nodes.Name))


def broken_links(page: Path) -> list[str]:
    """Return the links of a page to files or headings that do not exist."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target) and not _exists(page, target)]


def _exists(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    return file.exists() and (not anchor or anchor in anchors(file))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub generates them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def quoted_messages(page: Path) -> list[str]:
    """Return the messages that a page quotes: inline code with an ellipsis for a variable part."""
    return [text for text in re.findall(r"`([^`\n]+)`", prose(page)) if "…" in text]


def message_sources() -> str:
    """Return the text of all files with messages, with multi-line strings joined."""
    files = [path for name in ("plugins", "roles", "playbooks") for path in sorted((ROOT / name).rglob("*")) if path.is_file()]
    text = "\n".join(path.read_text() for path in files if path.suffix in (".py", ".yml", ".j2"))
    return re.sub(r"\s+", " ", re.sub(r'"\s*\n\s*f?"', "", text))
