"""Command line options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from tornado import process

from .values import (
    SyslogAddress,
    parse_addresses,
    parse_count,
    parse_log_target,
    parse_mode,
    parse_port,
    parse_seconds,
    parse_size,
    parse_target,
)

DEFAULT_THREADS = 10
"""Maximum concurrent requests of a WSGI application."""


class Options(argparse.Namespace):
    """The options as `parse_arguments` returns them: sizes in bytes, times in seconds."""

    target: tuple[str, str]
    wsgi: bool
    asgi: bool
    threads: int | None
    loop: str | None
    socket: Path | None
    socket_mode: int
    port: int | None
    address: str
    reuse_port: bool
    fork: int
    backlog: int
    certificate: Path | None
    key: Path | None
    xheaders: bool
    trusted_downstream: list[str]
    max_body_size: int
    idle_timeout: float
    drain: float
    log_to: list[Path | SyslogAddress | None]
    log_level: str
    log_max_bytes: int
    log_backups: int
    pid_file: Path | None
    metrics: Path | None
    replace: list[int]
    debug: bool
    watch: list[Path]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="runner",
        usage="%(prog)s MODULE:ATTR (--socket PATH | --port N) [options]",
        description="Serve a Tornado, WSGI or ASGI application. The working directory comes first on the module search path.",
        epilog="SIGTERM or SIGINT starts a graceful shutdown; a second signal ends the process immediately. Each log line "
        "contains the environment variables TORNADO_APP, TORNADO_SLOT, TORNADO_PROCESS and TORNADO_RELEASE.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "target",
        metavar="MODULE:ATTR",
        type=parse_target,
        help="a tornado.web.Application, or with --wsgi or --asgi such a callable; or a function without arguments, plain or "
        "async, that returns one. MODULE:ATTR() calls ATTR in any case",
    )
    interface = parser.add_mutually_exclusive_group()
    interface.add_argument("--wsgi", action="store_true", help="serve a WSGI callable in a thread pool")
    interface.add_argument(
        "--asgi",
        action="store_true",
        help="serve an ASGI callable by uvicorn, which uses websockets, httptools and uvloop if installed",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=parse_count,
        help=f"with --wsgi: maximum concurrent requests; further ones wait (default: {DEFAULT_THREADS})",
    )
    parser.add_argument(
        "--loop",
        choices=("asyncio", "uvloop"),
        help="event loop (default: uvloop with --asgi if it is installed, otherwise asyncio)",
    )
    _add_listening(parser)
    _add_requests(parser)
    _add_logs(parser)
    _add_process(parser)
    return parser


def _add_listening(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("listening (exactly one of --socket and --port)")
    place = group.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket", metavar="PATH", type=Path, help="Unix socket; a stale one is replaced")
    place.add_argument("--port", metavar="N", type=parse_port, help="TCP port; 0 selects a free one")
    group.add_argument(
        "--socket-mode",
        metavar="MODE",
        type=parse_mode,
        default="660",
        help="octal file mode of --socket (default: %(default)s)",
    )
    group.add_argument(
        "--address",
        default="127.0.0.1",
        help="address to bind --port to, '' for all addresses (default: %(default)s)",
    )
    group.add_argument("--reuse-port", action="store_true", help="share --port with other processes (SO_REUSEPORT)")
    group.add_argument(
        "--fork",
        metavar="N",
        type=parse_count,
        default=1,
        help="serve from N child processes that share the socket or port; 0: one per CPU; 1: do not fork (default: %(default)s)",
    )
    group.add_argument(
        "--backlog",
        metavar="N",
        type=parse_count,
        default=4096,
        help="maximum pending connections; the kernel limits it to net.core.somaxconn (default: %(default)s)",
    )
    group.add_argument("--certificate", metavar="FILE", type=Path, help="serve TLS with this certificate chain")
    group.add_argument("--key", metavar="FILE", type=Path, help="private key of --certificate")


def _add_requests(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("requests")
    group.add_argument(
        "--xheaders",
        action=argparse.BooleanOptionalAction,
        help="trust X-Real-Ip, X-Forwarded-For, X-Scheme and X-Forwarded-Proto; only directly behind a reverse proxy that "
        "overwrites all four (default: with --socket only)",
    )
    group.add_argument(
        "--trusted-downstream",
        metavar="IP[,IP]",
        type=parse_addresses,
        default=[],
        help="trusted proxies to skip when reading X-Forwarded-For from its end",
    )
    group.add_argument(
        "--max-body-size",
        metavar="SIZE",
        type=parse_size,
        default="50m",
        help="reject larger request bodies, streamed or not; bytes, or with k, m, g (default: %(default)s)",
    )
    group.add_argument(
        "--idle-timeout",
        metavar="SECONDS",
        type=parse_seconds,
        default=3600,
        help="close idle connections after this time (default: %(default)s)",
    )
    group.add_argument(
        "--drain",
        metavar="SECONDS",
        type=parse_seconds,
        default=30,
        help="graceful shutdown timeout: time for in-flight requests to finish after SIGTERM (default: %(default)s)",
    )


def _add_logs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("logs")
    group.add_argument(
        "--log-to",
        metavar="TARGET",
        type=parse_log_target,
        action="append",
        default=[],
        help="stderr, a FILE that is rotated, or udp://HOST:PORT of a syslog daemon, which receives lines of at most 8 KiB and "
        "may be unreachable; with --fork, each child inserts its number before the suffix of FILE (repeatable; default: stderr)",
    )
    group.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="minimum severity (default: %(default)s)",
    )
    group.add_argument(
        "--log-max-bytes",
        metavar="SIZE",
        type=parse_size,
        default="50m",
        help="rotate FILE before it exceeds this size (default: %(default)s)",
    )
    group.add_argument(
        "--log-backups", metavar="N", type=parse_count, default=5, help="rotated files to keep (default: %(default)s)"
    )


def _add_process(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("process")
    group.add_argument(
        "--pid-file",
        metavar="PATH",
        type=Path,
        help="pid file, locked while the process runs; a stale one is replaced",
    )
    group.add_argument(
        "--metrics",
        metavar="PATH",
        type=Path,
        help="Unix socket for owner and group that returns Prometheus metrics for any GET; the file remains after exit and "
        "refuses connections; with --fork, each child inserts its number before the suffix",
    )
    group.add_argument(
        "--replace",
        metavar="PID",
        type=parse_count,
        action="append",
        default=[],
        help="replace a process that serves here: stop it as soon as this process serves (repeatable). "
        "A --port without --reuse-port must be free first and refuses connections for a moment",
    )
    group.add_argument(
        "--debug",
        action="store_true",
        help="enable the application's debug settings and hot reload on code changes; single process only",
    )
    group.add_argument(
        "--watch",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="with --debug: also reload when this file changes (repeatable)",
    )


def parse_arguments(arguments: list[str], environment: Mapping[str, str]) -> Options:
    """Parse and validate the command line; exit with status 2 if it is invalid."""
    parser = make_parser()
    options = parser.parse_args(arguments, namespace=Options())
    options.log_to = options.log_to or [None]
    if options.fork == 0:
        options.fork = process.cpu_count()
    if options.xheaders is None:
        options.xheaders = options.socket is not None
    processes = environment.get("TORNADO_PROCESSES", "1")
    one_process = "hot reload supports one process only, but"
    problems = {
        "argument --threads: requires --wsgi": options.threads is not None and not options.wsgi,
        "argument --threads: must be at least 1": options.threads == 0,
        "argument --reuse-port: requires --port": options.reuse_port and options.port is None,
        "arguments --certificate and --key: specify both or neither": (options.certificate is None) != (options.key is None),
        "argument --watch: requires --debug": options.watch and not options.debug,
        f"argument --debug: {one_process} --fork starts {options.fork}": options.debug and options.fork > 1,
        f"argument --debug: {one_process} TORNADO_PROCESSES is {processes}": options.debug and processes not in ("", "0", "1"),
        f"argument --replace: requires a single process, but --fork starts {options.fork}": options.replace and options.fork > 1,
    }
    for problem, found in problems.items():
        if found:
            parser.error(problem)
    return options
