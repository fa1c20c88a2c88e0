"""What the pages of the documentation say that can be wrong: their commands, their links, and the messages that they quote."""

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

#: All pages that people read, but for the project's past.
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "roles/*/README.md", "files/*/README.md", ".github/*.md")
    for path in ROOT.glob(pattern)
    if path.name not in ("CHANGELOG.md", "seeds.md")
)

#: Those whose commands are run as they stand; a role's own page may leave open what it is about.
GUIDES = [path for path in PAGES if path.parent in (ROOT, ROOT / "docs")]

#: Programs of other makers that a command in the clone may begin with.
PROGRAMS = {"ansible-galaxy", "curl", "export", "git", "molecule", "pytest"}

#: Programs that a command on a host may begin with: Debian's own, and what the roles bring.
HOST_PROGRAMS = {"cat", "df", "du", "grep", "ip", "journalctl", "ls", "supervisorctl", "tail", "/usr/local/sbin/keepalived-check"}

#: Keys whose values are expressions of Jinja, without braces.
EXPRESSIONS = {"changed_when", "failed_when", "that", "until", "when"}

JINJA = Environment(autoescape=True)


def blocks(page: Path, language: str) -> list[str]:
    """Return a page's code blocks of a language, without their indentation in a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def commands(page: Path, language: str = "console") -> list[str]:
    """Return the commands of a page's blocks, and of its inline code those that name a playbook or a target of make."""
    lines = [line for block in blocks(page, language) for line in block.splitlines()]
    if language == "console":
        lines += re.findall(r"`((?:ansible-playbook|make|python3 -m|playbooks/\S+\.yml) [^`]+)`", prose(page))
    found = (line.strip() for line in lines)
    return [re.sub("^playbooks/", "ansible-playbook playbooks/", line) for line in found if not line.startswith("#")]


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^( *)```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def problem(command: str) -> str:
    """Return what a command of a page names that does not exist, or nothing."""
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
    return f"{words[:1]} is not known"


def untested(command: str) -> list[str]:
    """Return what no test names of a command: a playbook with an option of it, or what the test hosts are told to do."""
    words = shlex.split(command, comments=True)
    match words:
        case ["ansible-playbook", playbook, *_]:
            keys = [word.partition("=")[0] for before, word in itertools.pairwise(words) if before == "-e" and word[0] != "@"]
            name = Path(playbook).stem.rpartition(".")[2]
            # By its file, by its name in the collection, or by a function of that name.
            called = rf"{name}\.yml|funnel\.tornado\.{name}\b|\b(run_)?{name}\("
            wanted = [(called, rf"\b{key}[\"=:]" if key else "") for key in keys or [""]]
        case ["python3", "-m", "tools.hosts", verb, *_]:
            wanted = [(r"tools\.hosts", f'"{verb}"')]
        case _:
            wanted = []
    return [" ".join(one) for one in wanted if not any(all(re.search(part, text) for part in one) for text in _tests())]


@functools.cache
def _tests() -> list[str]:
    patterns = ("molecule/**/*.py", "molecule/*/*.yml", "tests/integration/*.py", "tests/*.py", "tests/support/*.py")
    return [path.read_text() for pattern in patterns for path in ROOT.glob(pattern) if path != Path(__file__)]


def host_problem(command: str) -> str:
    """Return what a command on a host names that no host has, or nothing."""
    words = shlex.split(command)
    units = re.findall(r"(?:-u|systemctl \S+) ([\w-]+)", command)
    unknown = [unit for unit in units if unit not in (ROOT / "playbooks/vars/fleet.yml").read_text()]
    return "" if words[0] in HOST_PROGRAMS and not unknown else f"{unknown or words[:1]} is not known"


def _make_problem(word: str) -> str:
    name, _, value = word.partition("=")
    if value:
        known = value.isdigit() if name == "JOBS" else name == "SCENARIO" and (ROOT / f"molecule/{value}/molecule.yml").exists()
    else:
        targets = (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")
        known = re.search(rf"^{re.escape(name)}:", targets, re.MULTILINE) is not None
    return "" if known else f"make knows no {word}"


def _refusal(parse: Any, arguments: list[str]) -> str:
    """Return what a program's own parser of arguments says against them."""
    words = io.StringIO()
    with contextlib.redirect_stderr(words), contextlib.chdir(ROOT):
        try:
            parse(arguments)
        except SystemExit:
            return words.getvalue().strip().splitlines()[-1]
    return ""


def _playbook_problem(words: list[str]) -> str:
    # It looks at the terminal when it is imported.
    from ansible.cli.playbook import PlaybookCLI

    program = PlaybookCLI(words)
    program.init_parser()
    parse: Any = program.parser
    if refused := _refusal(parse.parse_args, words[1:]):
        return refused
    options = parse.parse_args(words[1:])
    # In another's project a playbook goes by the collection's name and its own.
    playbooks = [ROOT / re.sub(r"^funnel\.tornado\.(\w+)$", r"playbooks/\1.yml", name) for name in options.args]
    named = [*playbooks, *(ROOT / name for name in options.inventory or ())]
    named += [ROOT / one[1:] for one in options.extra_vars if one.startswith("@")]
    missing = [str(path.relative_to(ROOT)) for path in named if not path.exists()]
    if missing:
        return f"there is no {' and no '.join(missing)}"
    read = {name for playbook in playbooks for name in variables_of(playbook)}
    unread = [one for one in options.extra_vars if not one.startswith("@") and one.partition("=")[0] not in read]
    return f"{' and '.join(options.args)} does not read {', '.join(unread)}" if unread else ""


@functools.cache
def variables_of(file: Path) -> set[str]:
    """Return the variables that a playbook, or a file of tasks or variables of one, reads, its imports and its roles among it."""
    return set(_names(yaml.safe_load(file.read_text()), file.parent))


def _names(part: Any, directory: Path, key: str = "") -> Iterator[str]:
    if isinstance(part, dict):
        for name, value in part.items():
            yield from _names(value, directory, str(name).rpartition(".")[2])
    elif isinstance(part, list):
        for one in part:
            yield from _names(one, directory, key)
    elif isinstance(part, str) and key in ("import_playbook", "vars_files", "import_tasks", "include_tasks"):
        yield from variables_of(directory / part)
    elif isinstance(part, str) and part.startswith("funnel.tornado."):
        defaults = ROOT / "roles" / part.rpartition(".")[2] / "defaults/main.yml"
        yield from yaml.safe_load(defaults.read_text()) if defaults.exists() else ()
    elif isinstance(part, str) and (key in EXPRESSIONS or "{{" in part):
        template = f"{{{{ {part} }}}}" if key in EXPRESSIONS and "{{" not in part else part
        yield from (node.name for node in JINJA.parse(template).find_all(nodes.Name))


def broken_links(page: Path) -> list[str]:
    """Return the links of a page that lead to no file, or to no heading of it."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target) and not _leads_somewhere(page, target)]


def _leads_somewhere(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    return file.exists() and (not anchor or anchor in anchors(file))


def anchors(page: Path) -> set[str]:
    """Return what the headings of a page are called in links, as GitHub makes it of them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def quoted(page: Path) -> list[str]:
    """Return the messages that a page quotes: inline code with an ellipsis where something differs."""
    return [text for text in re.findall(r"`([^`\n]+)`", prose(page)) if "…" in text]


def sources() -> str:
    """Return all text from which the collection makes messages, with what stands on several lines put together."""
    files = [path for name in ("plugins", "roles", "playbooks") for path in sorted((ROOT / name).rglob("*")) if path.is_file()]
    text = "\n".join(path.read_text() for path in files if path.suffix in (".py", ".yml", ".j2"))
    return re.sub(r"\s+", " ", re.sub(r'"\s*\n\s*f?"', "", text))
