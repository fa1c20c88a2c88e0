"""Parsing of nginx configuration files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import last_lines

#: White space and comments, and the tokens between them: punctuation, quoted words, and words, which may contain ${variable}.
_TOKEN = re.compile(
    r"""(?P<skipped>\s+|\#[^\n]*)
      | (?P<mark>[{};])
      | "(?P<double>(?:\\.|[^"\\])*)"
      | '(?P<single>(?:\\.|[^'\\])*)'
      | (?P<word>(?!["'])(?:\\.|\$\{[^}\s]*\}|[^\s{};\\])+)""",
    re.VERBOSE | re.DOTALL,
)

#: Marks the files in the output of ``nginx -T``.
_FILE = re.compile(r"^# configuration file (\S+):$", re.MULTILINE)

#: Options of ``listen`` for UDP, whose ports are others than those of TCP.
_OVER_UDP = frozenset({"quic", "udp"})


class NginxSyntaxError(ValueError):
    """A configuration file that nginx would refuse. The message has the line."""


@dataclass(frozen=True)
class Directive:
    """A directive with its arguments, the line on which it begins, and its source text; ``block`` is None without braces."""

    name: str
    arguments: tuple[str, ...]
    line: int
    text: str
    block: Sequence[Directive] | None = None

    @property
    def normalized(self) -> str:
        """The directive without its block, with single spaces."""
        return " ".join([self.name, *self.arguments])


@dataclass
class _Open:
    """A block that is being parsed."""

    words: list[str] = field(default_factory=list)
    start: int = 0
    line: int = 0
    directives: list[Directive] = field(default_factory=list)


def parse(text: str) -> list[Directive]:
    """Return the directives of a configuration file.

    :raises NginxSyntaxError: when braces or quotes are not balanced, or a directive has no end.
    """
    stack, position, line = [_Open()], 0, 1
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise NginxSyntaxError(f"line {line}: a quoted word has no end")
        end = token.end()
        if token["mark"]:
            end = _punctuate(stack, token["mark"], text, end, line)
        elif token["skipped"] is None:
            level = stack[-1]
            if not level.words:
                level.start, level.line = position, line
            level.words.append(token[token.lastgroup or 0])
        line += text.count("\n", position, end)
        position = end
    if len(stack) > 1 or stack[0].words:
        raise NginxSyntaxError("it ends within a directive")
    return stack[0].directives


def _punctuate(stack: list[_Open], mark: str, text: str, end: int, line: int) -> int:
    """Begin or end a directive at a mark that ends at ``end``; return the end of what was parsed."""
    level = stack[-1]
    if mark == "{" and level.words:
        if level.words[0].endswith("_by_lua_block"):  # Lua has another syntax
            end = _end_of_block(text, end)
            _close(level, text, end, [])
        else:
            stack.append(_Open())
    elif mark == ";" and level.words:
        _close(level, text, end, None)
    elif mark == "}" and len(stack) > 1 and not level.words:
        stack.pop()
        _close(stack[-1], text, end, level.directives)
    else:
        raise NginxSyntaxError(f"line {line}: unexpected {mark}")
    return end


def _close(level: _Open, text: str, end: int, block: Sequence[Directive] | None) -> None:
    name, *arguments = level.words
    level.directives.append(Directive(name, tuple(arguments), level.line, text[level.start : end], block))
    level.words = []


def _end_of_block(text: str, position: int) -> int:
    depth = 1
    for mark in re.finditer(r"[{}]", text[position:]):
        depth += 1 if mark[0] == "{" else -1
        if depth == 0:
            return position + mark.end()
    raise NginxSyntaxError("it ends within a block of Lua")


@dataclass(frozen=True)
class Listen:
    """A TCP address that a server listens on, such as ``80``, ``[::]:443`` or ``192.0.2.1:80``."""

    address: str
    default: bool


@dataclass(frozen=True)
class ServerBlock:
    """A server in the configuration of a host."""

    file: str
    line: int
    names: Sequence[str]
    listen: Sequence[Listen]

    @property
    def place(self) -> str:
        """Its file and line."""
        return f"{self.file}:{self.line}"


def dumped_files(dump: str) -> dict[str, str]:
    """Return the files in the output of ``nginx -T`` by path, in its order."""
    _head, *parts = _FILE.split(dump)
    # The mark of a file ends with a line break.
    return {file: text.removeprefix("\n") for file, text in zip(parts[::2], parts[1::2], strict=True)}


def block_directives(files: Mapping[str, str], main: str, name: str) -> Iterator[tuple[str, Directive]]:
    """Yield the directives of the top-level block ``name``, such as ``http``, with their files, which ``main`` includes.

    :raises NginxSyntaxError: when a file is not valid.
    """
    for file, directive in _included(files, main, parse(files.get(main, "")), main):
        if directive.name == name:
            yield from _included(files, file, directive.block or (), main)


def _included(files: Mapping[str, str], file: str, directives: Sequence[Directive], main: str) -> Iterator[tuple[str, Directive]]:
    """Yield the directives of a file with those of the files that it includes in their place."""
    for directive in directives:
        if directive.name == "include" and directive.arguments:
            pattern = str(PurePath(main).parent / directive.arguments[0])
            for path in filter(lambda path: PurePath(path).match(pattern), files):
                yield from _included(files, path, parse(files[path]), main)
        else:
            yield file, directive


def servers(directives: Iterable[tuple[str, Directive]]) -> Iterator[ServerBlock]:
    """Yield the servers among the directives of a block, with their files."""
    yield from (_server(file, block) for file, block in directives if block.name == "server" and block.block is not None)


def _server(file: str, server: Directive) -> ServerBlock:
    inside = server.block or ()
    names = [name for directive in inside if directive.name == "server_name" for name in directive.arguments]
    given = [directive.arguments for directive in inside if directive.name == "listen" and directive.arguments]
    listen = [
        Listen(normalize_address(address), not {"default_server", "default"}.isdisjoint(options))
        for address, *options in given or [("80",)]
        if not _OVER_UDP.intersection(options)
    ]
    return ServerBlock(file, server.line, names, listen)


def normalize_address(address: str) -> str:
    """Return an address of ``listen`` in one form: the port alone for all addresses of IPv4.

    >>> normalize_address("*:80"), normalize_address("0.0.0.0:80"), normalize_address("192.0.2.1"), normalize_address("[::]")
    ('80', '80', '192.0.2.1:80', '[::]:80')
    """
    if address.isdigit() or address.startswith("unix:"):
        return address
    if not re.search(r":\d+\Z", address):
        address = f"{address}:80"
    host, _colon, port = address.rpartition(":")
    return port if re.fullmatch(r"\*|0(\.0){3}", host) else address


def error_text(output: str) -> str:
    r"""Return the output of a failed ``nginx -t`` without times and process ids.

    >>> error_text('2026/11/28 19:07:12 [emerg] 1#1: unknown directive "x" in /etc/nginx/nginx.conf:1\nnginx: ... test failed')
    'unknown directive "x" in /etc/nginx/nginx.conf:1'
    """
    found = re.findall(r"\[(?:emerg|crit|alert)\] (?:\d+#\d+: )?(.*)", output)
    return "; ".join(dict.fromkeys(found)) or last_lines(output, 3)
