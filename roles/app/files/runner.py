"""Serve a Tornado application in production.

``python runner.py MODULE:ATTR [options]`` finds a `tornado.web.Application` (or calls the function that makes one), or a
WSGI callable, and serves it on a unix socket, a port, or a port shared with other processes. See ``--help``.

The life of a process:

1. The pid file is locked, the application is imported and made, then the socket appears: whoever can connect is served.
   With ``--replace``, another process serves until then, and is told to stop only now.
2. It serves. Everything that Python's ``logging`` is given, Tornado's three loggers included, is written one way.
3. SIGTERM or SIGINT drains it: no new connections, websockets are closed with 1012 (service restart), idle connections
   are closed, requests in flight are answered with ``Connection: close``. Then, or after ``--drain`` seconds, it exits
   with status 0. A second signal ends it at once, with status 1.

With ``--metrics`` it tells Prometheus of itself, until its end and on a socket that is nobody's way to the application. In the
text format by hand: ``prometheus_client`` would have to be in the application's environment, whose contents are its own.

This file needs Python 3.11 and the application's own Tornado 6.6, and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import collections
import contextlib
import contextvars
import errno
import fcntl
import functools
import gc
import importlib
import inspect
import ipaddress
import itertools
import json
import logging
import logging.handlers
import mmap
import os
import platform
import re
import resource
import select
import signal
import socket
import ssl
import stat
import sys
import threading
import time
import traceback
import urllib.parse
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, NoReturn, ParamSpec, TextIO, TypeVar, cast

import tornado
from tornado import autoreload, netutil, process
from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError
from tornado.log import app_log
from tornado.web import Application, OutputTransform
from tornado.websocket import WebSocketHandler
from tornado.wsgi import WSGIContainer

log = logging.getLogger("runner")

P = ParamSpec("P")
T = TypeVar("T")

ACCEPT_GRACE = 1.0
"""Seconds that a drain goes on accepting from a port at most: until nobody waits, which may never be. A socket was withdrawn."""

IDLE_GRACE = 1.0
"""Seconds between the start of a drain and the closing of idle connections.

A request that is sent while its connection is being closed is lost, and HTTP/1.1 cannot tell an idle client in advance.
So those that are about to send one get the time to; their answers say ``Connection: close``.
"""

DRAIN_STEP = 0.02
"""Seconds between two looks at what is left to finish."""

LOG_INTERVAL = 0.1
"""Seconds that a line of the log may wait for others."""

LOOKUP_INTERVAL = 30.0
"""Seconds after which the address of the syslog daemon's host is looked up again: it may not be known yet, or have moved."""

LOOKUP_GRACE = 1.0
"""Seconds that the end of a process is held up at most by a lookup, so that its last words can be sent."""

SYSLOG_WAITING = 1000
"""Lines that wait for the first lookup; older ones are dropped."""

SYSLOG_BYTES = 8192
"""The largest datagram: what syslog daemons take is 8 KiB by default, and 64 KiB is the most that UDP has."""

DEFAULT_THREADS = 10
"""Requests that a WSGI application works on at a time."""

KILL_GRACE = 5.0
"""Seconds beyond ``--drain`` after which a process that was told to stop is killed."""

ACCEPT_PAUSE = 1.0
"""Seconds without accepting after running out of file descriptors; asyncio's own servers wait as long."""

SERVICE_RESTART = 1012
"""The websocket close code for "service restart", https://www.iana.org/assignments/websocket/."""

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Seconds that histograms tell apart: the default of Prometheus' own client libraries."""

STATUSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
"""Classes of answers, each at its place. none: the client went away, or the body was too large, before there was an answer."""

LAG_INTERVAL = 1.0
"""Seconds between two looks at how late the event loop is."""

REQUEST_ID = contextvars.ContextVar("REQUEST_ID", default="")
"""The id that the proxy gave to the request that is worked on, in the tasks and threads that it has started, too."""

HANDED_OVER = "_TORNADO_RUNNER_HANDED_OVER"
"""The environment variable in which a reload tells the next program of its open files."""


class RunnerError(Exception):
    """What keeps an application from being served, in one line; ``__cause__`` is the application's own exception."""


def describe(error: OSError) -> str:
    """Return the reason of a failure without the errno and the file name around it."""
    return error.strerror or str(error)


# Options


class SyslogAddress(NamedTuple):
    """Where a syslog daemon takes datagrams."""

    host: str
    port: int


class Options(argparse.Namespace):
    """The command line, as `parse_arguments` returns it: sizes in bytes, times in seconds."""

    target: tuple[str, str]
    wsgi: bool
    threads: int | None
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


def parse_target(text: str) -> tuple[str, str]:
    """Split ``package.module:attribute``; the attribute may be one of another, as in ``shop.web:server.app``."""
    module, _colon, attribute = text.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise argparse.ArgumentTypeError(f"{text!r} is not MODULE:ATTR, such as shop.web:make_app")
    return module, attribute


def parse_size(text: str) -> int:
    """Return the bytes that ``65536``, ``64k``, ``50m`` or ``1g`` means."""
    match = re.fullmatch(r"([1-9][0-9]*)([kmg]?)", text.lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 65536, 64k, 50m or 1g")
    number, unit = match.groups()
    return int(number) << {"": 0, "k": 10, "m": 20, "g": 30}[unit]


def parse_mode(text: str) -> int:
    """Return the file permissions that ``660`` means."""
    if re.fullmatch(r"0?[0-7]{3}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a file mode in octal, such as 660")
    return int(text, 8)


def parse_seconds(text: str) -> float:
    """Return a number of seconds, zero or more."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, such as 30 or 0.5")
    return float(text)


def parse_count(text: str) -> int:
    """Return a whole number, zero or more."""
    if re.fullmatch(r"[0-9]+", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def parse_port(text: str) -> int:
    """Return a TCP port; 0 lets the kernel choose."""
    if (port := parse_count(text)) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: the highest is 65535")
    return port


def parse_addresses(text: str) -> list[str]:
    """Split a comma-separated list of IP addresses."""
    addresses = [address.strip() for address in text.split(",")]
    for address in addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{address!r} is not an IP address") from error
    return addresses


def parse_log_to(text: str) -> Path | SyslogAddress | None:
    """Return the file or the syslog daemon that the log goes to; None is stderr."""
    if text == "stderr":
        return None
    if "://" not in text:
        return Path(text)
    try:
        url = urllib.parse.urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    if not host or not port or text not in (f"udp://{host}:{port}", f"udp://[{host}]:{port}"):
        raise argparse.ArgumentTypeError(f"{text!r} is not stderr, a file, or udp://HOST:PORT")
    return SyslogAddress(host, port)


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s MODULE:ATTR (--socket PATH | --port N) [options]",
        description="Serve a Tornado or WSGI application. The working directory comes first on the module search path.",
        epilog="SIGTERM or SIGINT drains the process, a second one ends it at once. In the environment, TORNADO_APP, "
        "TORNADO_SLOT, TORNADO_PROCESS and TORNADO_RELEASE are what each line of the log says of its process.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "target",
        metavar="MODULE:ATTR",
        type=parse_target,
        help="a tornado.web.Application, or a function (plain or async) that returns one; with --wsgi, a WSGI callable",
    )
    parser.add_argument("--wsgi", action="store_true", help="serve a WSGI callable, in threads")
    parser.add_argument(
        "--threads",
        metavar="N",
        type=parse_count,
        help=f"with --wsgi: requests that are worked on at a time; others wait (default: {DEFAULT_THREADS})",
    )

    listening = parser.add_argument_group("where to listen (exactly one of --socket and --port)")
    place = listening.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket", metavar="PATH", type=Path, help="a unix socket; a stale one is replaced")
    place.add_argument("--port", metavar="N", type=parse_port, help="a TCP port")
    listening.add_argument(
        "--socket-mode",
        metavar="MODE",
        type=parse_mode,
        default="660",
        help="who may connect to --socket, as an octal file mode (default: %(default)s)",
    )
    listening.add_argument(
        "--address",
        default="127.0.0.1",
        help="the address that --port is opened on, '' for all (default: %(default)s)",
    )
    listening.add_argument("--reuse-port", action="store_true", help="share --port with other processes that ask for the same")
    listening.add_argument(
        "--fork",
        metavar="N",
        type=parse_count,
        default=1,
        help="serve from N processes that share the socket or port; 0: one per CPU; 1: no child (default: %(default)s)",
    )
    listening.add_argument(
        "--backlog",
        metavar="N",
        type=parse_count,
        default=4096,
        help="connections that may wait, capped by the kernel at net.core.somaxconn (default: %(default)s)",
    )
    listening.add_argument("--certificate", metavar="FILE", type=Path, help="serve TLS with this certificate chain")
    listening.add_argument("--key", metavar="FILE", type=Path, help="the private key of --certificate")

    requests = parser.add_argument_group("requests")
    requests.add_argument(
        "--xheaders",
        action=argparse.BooleanOptionalAction,
        help="believe X-Real-Ip, X-Forwarded-For, X-Scheme and X-Forwarded-Proto; only right behind a proxy that "
        "overwrites all four (default: with --socket only)",
    )
    requests.add_argument(
        "--trusted-downstream",
        metavar="IP[,IP]",
        type=parse_addresses,
        default=[],
        help="proxies to skip when reading X-Forwarded-For from its end",
    )
    requests.add_argument(
        "--max-body-size",
        metavar="SIZE",
        type=parse_size,
        default="50m",
        help="refuse larger request bodies, streamed or not; bytes, or with k, m, g (default: %(default)s)",
    )
    requests.add_argument(
        "--idle-timeout",
        metavar="SECONDS",
        type=parse_seconds,
        default=3600,
        help="close a connection without a request after so long (default: %(default)s)",
    )
    requests.add_argument(
        "--drain",
        metavar="SECONDS",
        type=parse_seconds,
        default=30,
        help="how long requests in flight may take after SIGTERM (default: %(default)s)",
    )

    logs = parser.add_argument_group("logs")
    logs.add_argument(
        "--log-to",
        metavar="WHERE",
        type=parse_log_to,
        action="append",
        default=[],
        help="stderr, a FILE that is rotated, or udp://HOST:PORT of a syslog daemon, which gets lines of at most 8 KiB and "
        "may be unreachable; with --fork, each child's FILE has its number before the suffix (repeatable; default: stderr)",
    )
    logs.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="how serious a line must be (default: %(default)s)",
    )
    logs.add_argument(
        "--log-max-bytes",
        metavar="SIZE",
        type=parse_size,
        default="50m",
        help="rotate the FILE before it is larger (default: %(default)s)",
    )
    logs.add_argument(
        "--log-backups", metavar="N", type=parse_count, default=5, help="rotated files to keep (default: %(default)s)"
    )

    control = parser.add_argument_group("process")
    control.add_argument(
        "--pid-file",
        metavar="PATH",
        type=Path,
        help="held locked as long as the process lives; a stale one is replaced",
    )
    control.add_argument(
        "--metrics",
        metavar="PATH",
        type=Path,
        help="a unix socket, for owner and group, that answers any GET with metrics for Prometheus; it is left behind at the "
        "end, and refuses then; with --fork, each child's has its number before the suffix",
    )
    control.add_argument(
        "--replace",
        metavar="PID",
        type=parse_count,
        action="append",
        default=[],
        help="take the place of a process that serves here: it is stopped as soon as this one serves (repeatable). "
        "A --port without --reuse-port has to be free first, and refuses connections for a moment",
    )
    control.add_argument(
        "--debug",
        action="store_true",
        help="switch on the application's debug settings and reload on changed code; for one process only",
    )
    control.add_argument(
        "--watch",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="with --debug: reload when this file changes too (repeatable)",
    )
    return parser


def parse_arguments(arguments: list[str], environment: Mapping[str, str]) -> Options:
    """Read the command line; exit with status 2 when it is not understood."""
    parser = make_parser()
    options = parser.parse_args(arguments, namespace=Options())
    options.log_to = options.log_to or [None]
    if options.fork == 0:
        options.fork = process.cpu_count()
    if options.xheaders is None:
        options.xheaders = options.socket is not None
    processes = environment.get("TORNADO_PROCESSES", "1")
    one_process = "reloading is for one process, and"
    refused = {
        "argument --threads: only with --wsgi": options.threads is not None and not options.wsgi,
        "argument --threads: at least 1": options.threads == 0,
        "argument --reuse-port: only with --port": options.reuse_port and options.port is None,
        "arguments --certificate and --key: both or none": (options.certificate is None) != (options.key is None),
        "argument --watch: only with --debug": options.watch and not options.debug,
        f"argument --debug: {one_process} --fork makes {options.fork}": options.debug and options.fork > 1,
        f"argument --debug: {one_process} TORNADO_PROCESSES is {processes}": options.debug and processes not in ("", "0", "1"),
        f"argument --replace: goes with one process, and --fork makes {options.fork}": options.replace and options.fork > 1,
    }
    for problem, found in refused.items():
        if found:
            parser.error(problem)
    return options


# Logs


class LineFormatter(logging.Formatter):
    """Formats every record one way: time, level, logger, process, message.

    ``2026-11-21T03:14:15.926Z INFO  tornado.access [shop a/0 1f2e3d4c pid 812] 200 GET / (10.0.0.1) 1.23ms``
    A line about a request that has an id ends with it, as in ``request=9c41f3a7``.
    What follows a line break, such as a traceback, is indented: a message cannot pass itself off as another line.
    """

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Name the process by what is set of TORNADO_APP, TORNADO_SLOT, TORNADO_PROCESS and TORNADO_RELEASE."""
        place = "/".join(filter(None, map(environment.get, ("TORNADO_SLOT", "TORNADO_PROCESS"))))
        words = (environment.get("TORNADO_APP"), place, environment.get("TORNADO_RELEASE"), "pid")
        context = " ".join(filter(None, words)).replace("%", "%%")
        super().__init__(f"%(asctime)s %(levelname)-5s %(name)s [{context} %(process)d] %(message)s")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        first, *others = super().format(record).splitlines()
        request = REQUEST_ID.get()
        return "\n    ".join([f"{first} request={request}" if request else first, *others])


class BatchHandler(logging.StreamHandler[TextIO]):
    """Writes lines below WARNING ten times a second, all of them at once; what is more serious, or the runner's own, at once.

    Whoever reads a pipe, such as supervisord, wakes up for each write: a line per request cost it a sixth of a CPU at
    3,000 requests a second. Lines that wait are lost only when the process is killed without a signal it can handle.
    """

    def __init__(self) -> None:
        """Write to stderr."""
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line for the next write, if there will be one: without an event loop it is written now."""
        try:
            self.lines.append(f"{self.format(record)}\n")
            urgent = record.levelno >= logging.WARNING or record.name == log.name
            loop = None if urgent else asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        except Exception:
            self.handleError(record)
            return
        if loop is None:
            self.flush()
        elif len(self.lines) == 1:
            loop.call_later(LOG_INTERVAL, self.flush)

    def flush(self) -> None:
        """Write the lines that wait; a full disk, or a reader that is gone, is no reason to fail requests."""
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError):
            lines, self.lines = self.lines, []
            self.stream.write("".join(lines))
            super().flush()


class SyslogHandler(logging.Handler):
    """Sends each line to a syslog daemon, in a datagram as RFC 5424 has it; the process never waits for that, nor fails by it.

    The daemon's host is looked up in a thread, because a resolver that does not answer would block the event loop for seconds.
    What cannot be sent at once is dropped: a full send buffer, a network that is down, a firewall.
    """

    def __init__(self, target: SyslogAddress) -> None:
        """Look the host up at the first line."""
        super().__init__()
        self.target = target
        self.pid = os.getpid()
        self.head = f"{socket.gethostname()} {os.environ.get('TORNADO_APP') or 'tornado'} {self.pid} - -"
        self.waiting: collections.deque[bytes] = collections.deque(maxlen=SYSLOG_WAITING)
        self.found: tuple[socket.socket, Any] | None = None
        self.failed = False
        self.next_lookup = 0.0
        self.looked_up = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line, or keep it until it is known where to."""
        try:
            severity = logging.handlers.SysLogHandler.priority_map.get(record.levelname, "warning")
            priority = logging.handlers.SysLogHandler.LOG_USER << 3 | logging.handlers.SysLogHandler.priority_names[severity]
            when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            line = f"<{priority}>1 {when}.{int(record.msecs):03d}Z {self.head} {self.format(record)}"
            self.waiting.append(line.encode(errors="replace")[:SYSLOG_BYTES])
            if time.monotonic() >= self.next_lookup:
                self.next_lookup = time.monotonic() + LOOKUP_INTERVAL
                self.looked_up.clear()
                threading.Thread(target=self.look_up, daemon=True).start()
            self.flush()
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Send the lines that wait."""
        with self.lock or contextlib.nullcontext():
            while self.found is not None and self.waiting:
                sender, address = self.found
                with contextlib.suppress(OSError):
                    sender.sendto(self.waiting.popleft(), address)

    def look_up(self) -> None:
        """Find out where the daemon is; it is said once when that fails, and what was known before still holds."""
        problem = ""
        try:
            family, kind, protocol, _name, address = socket.getaddrinfo(*self.target, type=socket.SOCK_DGRAM)[0]
            sender = socket.socket(family, kind, protocol)
            sender.settimeout(0)
            self.found = sender, address
        except OSError as error:
            problem = describe(error)
        self.looked_up.set()  # without the lock, which is held by whoever waits for it
        self.flush()
        if problem and self.found is None and not self.failed:
            self.failed = True
            log.warning("cannot log to udp://%s:%d yet: %s", *self.target, problem)

    def close(self) -> None:
        """Give the last words of a short life a moment; those of a parent are not its child's to repeat."""
        if self.pid == os.getpid() and self.waiting and self.looked_up.wait(LOOKUP_GRACE):
            self.flush()
        super().close()


def make_log_handler(target: Path | SyslogAddress | None, options: Options) -> logging.Handler:
    """Open one of what ``--log-to`` names."""
    if target is None:
        return BatchHandler()
    if isinstance(target, SyslogAddress):
        return SyslogHandler(target)
    try:
        return logging.handlers.RotatingFileHandler(
            own_path(target), maxBytes=options.log_max_bytes, backupCount=options.log_backups, encoding="utf-8"
        )
    except OSError as error:
        raise RunnerError(f"cannot log to {own_path(target)}: {describe(error)}") from None


def own_path(path: Path) -> Path:
    """Return the path of what each process has for itself: two children cannot rotate one file, nor answer on one socket."""
    number = process.task_id()
    return path if number is None else path.with_suffix(f".{number}{path.suffix}")


def configure_logging(options: Options) -> None:
    """Send every logger to where ``--log-to`` says.

    This comes before the import of the application: the root logger has its handlers by then, which is what keeps
    ``logging.basicConfig`` and ``tornado.options.parse_command_line`` from adding theirs.
    """
    handlers = [make_log_handler(target, options) for target in options.log_to]
    for handler in handlers:
        handler.setFormatter(LineFormatter(os.environ))
    logging.basicConfig(handlers=handlers, level=options.log_level.upper(), force=True)


# What a process has on the host: its pid file and its listening sockets


class OwnFile:
    """A file that this process made: it is removed by this process only, and only if the name still leads to it."""

    def __init__(self, path: Path) -> None:
        """Take note of a file that was just made."""
        self.path = path.absolute()
        self.owner = os.getpid()
        self.identity = self.look()

    def look(self) -> tuple[int, int] | None:
        """Return the device and inode that the name leads to."""
        try:
            status = self.path.lstat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def remove(self) -> None:
        """Remove the file; does nothing the second time."""
        if self.owner == os.getpid() and self.identity is not None and self.look() == self.identity:
            self.path.unlink()


class PidFile(OwnFile):
    """The process's id in a file that is locked (``flock``) for as long as the process lives.

    The lock tells whether the process lives, and dies with it; the id in the file is for people and scripts.
    """

    def __init__(self, path: Path, inherited: int | None = None, replaced: Collection[int] = ()) -> None:
        """Lock the file, unless it comes locked from before a reload; raises RunnerError.

        One that is locked by a process of ``replaced`` makes way for a new file of that name.
        """
        try:
            self.fd = self.lock(path, replaced) if inherited is None else inherited
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            raise RunnerError(f"cannot use the pid file {path}: {describe(error)}") from None
        super().__init__(path)

    def lock(self, path: Path, replaced: Collection[int]) -> int:
        """Open the file and lock it."""
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                if holder not in map(str, replaced):
                    raise RunnerError(f"already running: pid {holder} holds the lock on {path}") from None
                path.unlink(missing_ok=True)
            # Whoever held the lock before may have removed the file between the two calls.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return fd
            os.close(fd)

    def disown(self) -> None:
        """Leave the lock to the parent: a forked child that outlives it would keep it otherwise."""
        os.close(self.fd)


class Listener(socket.socket):
    """A listening socket that waits when the process is out of file descriptors.

    A waiting connection keeps a listening socket readable: Tornado tries again at once and logs each failure (36,000
    lines in two seconds were seen). This one tries again after a second, as asyncio's servers do.
    """

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection, or raise BlockingIOError when there is none to be had."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            loop = IOLoop.current()
            loop.update_handler(self, IOLoop.NONE)
            loop.call_later(ACCEPT_PAUSE, self.resume)
            log.warning("cannot accept connections: %s; trying again in %g s", describe(error), ACCEPT_PAUSE)
            raise BlockingIOError(errno.EAGAIN, "no file descriptor to spare") from error

    def resume(self) -> None:
        """Accept again, unless the server has stopped."""
        if self.fileno() != -1:
            IOLoop.current().update_handler(self, IOLoop.READ)


def is_live(path: Path) -> bool:
    """Tell whether anything listens on a unix socket; raise RunnerError if a file is in its place."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise RunnerError(f"cannot listen on {path}: it exists and is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(0)  # a full backlog is an answer too
            probe.connect(str(path))
    except BlockingIOError:
        return True
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def listen_unix(path: Path, mode: int, backlog: int, *, replace: bool) -> Listener:
    """Listen on a unix socket, which appears under its name when it is ready and has its permissions."""
    if is_live(path) and not replace:
        raise RunnerError(f"cannot listen on {path}: another process does")
    hidden = path.with_name(f".{os.getpid()}")
    hidden.unlink(missing_ok=True)
    listener = Listener(socket.AF_UNIX)
    listener.settimeout(0)
    try:
        listener.bind(str(hidden))
        hidden.chmod(mode)
        listener.listen(backlog)
        hidden.rename(path)
    finally:
        hidden.unlink(missing_ok=True)
    return listener


class Endpoint:
    """Where the application is served: its listening sockets, and the name of the unix socket if it is one."""

    def __init__(self, options: Options, inherited: Sequence[int] = (), *, replace: bool = False) -> None:
        """Listen, unless the sockets come from before a reload; raises RunnerError.

        :arg replace: whether a unix socket's name is taken from another process that listens there.
        """
        self.options = options
        self.replace = replace
        self.file: OwnFile | None = None
        self.listeners = [Listener(fileno=fd) for fd in inherited]
        if not self.listeners:
            try:
                self.listeners = self.open()
            except OSError as error:
                raise RunnerError(f"cannot listen on {self}: {describe(error)}") from None
        if options.socket is not None:
            self.file = OwnFile(options.socket)

    def open(self) -> list[Listener]:
        """Bind and listen."""
        options = self.options
        if options.socket is not None:
            return [listen_unix(options.socket, options.socket_mode, options.backlog, replace=self.replace)]
        sockets = netutil.bind_sockets(options.port or 0, options.address, backlog=options.backlog, reuse_port=options.reuse_port)
        return [Listener(fileno=bound.detach()) for bound in sockets]

    def __str__(self) -> str:
        """Return the address, as a URL if it is one."""
        if self.options.socket is not None:
            return f"unix:{self.options.socket}"
        port = self.listeners[0].getsockname()[1] if self.listeners else self.options.port
        host = self.options.address or "*"
        scheme = "http" if self.options.certificate is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def withdraw(self) -> None:
        """Take the socket's name away: nobody connects from now on, or another process may take it."""
        if self.file is not None:
            self.file.remove()

    def close(self) -> None:
        """Stop listening in a process that does not serve."""
        self.withdraw()
        for listener in self.listeners:
            listener.close()


class Predecessor:
    """A process that serves in the place that this one takes."""

    def __init__(self, pid: int) -> None:
        """Take hold of the process, if it lives; raises RunnerError.

        By a descriptor of it (pidfd_open(2)): its id may be another process's by the time that it is told to stop.
        """
        self.pid = pid
        self.fd: int | None = None
        try:
            self.fd = os.pidfd_open(pid)
            signal.pidfd_send_signal(self.fd, 0)
        except ProcessLookupError:
            self.close()
        except OSError as error:
            raise RunnerError(f"cannot replace process {pid}: {describe(error)}") from None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process still lives."""
        if self.fd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.fd, number)

    def close(self) -> None:
        """Let go of the process."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def kill(self) -> None:
        """End the process, if it still lives."""
        self.send(signal.SIGKILL)
        self.close()


# The application

APPLICATION_EXPECTED = "a tornado.web.Application or a function that returns one"
WSGI_EXPECTED = "a WSGI callable, which takes (environ, start_response)"


class WsgiApplication(WSGIContainer):
    """Runs a WSGI application, one thread for each request, and sends what it answers as it comes.

    Tornado's own container collects the whole answer, calls ``close`` in the event loop, and refuses headers whose values begin
    with a space, as Django's cookies do.
    """

    async def handle_request(self, request: HTTPServerRequest) -> None:
        """Answer one request; an exception becomes status 500, or, in the middle of an answer, the end of the connection."""
        connection = cast(HTTP1Connection, request.connection)
        answer = WsgiAnswer(request, connection)
        try:
            await asyncio.get_running_loop().run_in_executor(self.executor, self.run, self.environ(request), answer)
            await answer.finish()
        except StreamClosedError:
            app_log.info("The client of %s %s (%s) is gone", request.method, request.uri, request.remote_ip)
        except (Exception, SystemExit):
            app_log.exception("Uncaught exception %s %s (%s)", request.method, request.uri, request.remote_ip)
            answer.fail()
        self._log(answer.status, request)

    def run(self, environ: dict[str, Any], answer: WsgiAnswer) -> None:
        """Run the application from its call to the end of its answer, in a thread, which is the same one throughout."""
        chunks = self.wsgi_application(environ, answer.start)
        try:
            if isinstance(chunks, list | tuple):
                answer.rest = b"".join(chunks)
            else:
                for chunk in chunks:
                    answer.write(chunk)
        finally:
            if hasattr(chunks, "close"):
                chunks.close()


class WsgiAnswer:
    """The answer to one request, which the thread of a WSGI application writes (PEP 3333).

    Each chunk is sent at once, and the thread waits until the client has room for the next one. An answer without
    ``Content-Length`` is chunked; for HTTP/1.0, which knows no chunks, it is collected.
    """

    def __init__(self, request: HTTPServerRequest, connection: HTTP1Connection) -> None:
        """Answer ``request`` on ``connection``; called in the event loop."""
        self.loop = asyncio.get_running_loop()
        self.connection = connection
        self.body_expected = request.method != "HEAD"
        self.can_be_chunked = request.version != "HTTP/1.0"
        self.status = 0
        self.reason = ""
        self.headers = HTTPHeaders()
        self.sent = False
        self.rest = b""

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        """Take status and headers: the ``start_response`` of PEP 3333."""
        if exc_info is not None and self.sent:
            raise exc_info[1].with_traceback(exc_info[2])
        if exc_info is None and self.status:
            raise RuntimeError("the application called start_response twice")
        code, _space, self.reason = status.partition(" ")
        self.headers = HTTPHeaders()
        for name, value in headers:
            self.headers.add(name, value.strip(" \t"))
        self.status = int(code)
        return self.write

    def write(self, chunk: bytes) -> None:
        """Send a chunk, in the application's thread.

        :raises StreamClosedError: when the client is gone.
        """
        self._require_start()
        if chunk and (self.can_be_chunked or "Content-Length" in self.headers):
            asyncio.run_coroutine_threadsafe(self._send(chunk), self.loop).result()
        else:
            self.rest += chunk

    async def finish(self) -> None:
        """Send what is left, which is the whole answer of an application that returned a list; called in the event loop."""
        self._require_start()
        if not self.sent and self.status >= 200 and self.status not in (204, 304):
            self.headers.setdefault("Content-Length", str(len(self.rest)))
        if self.rest or not self.sent:
            await self._send(self.rest)
        self.connection.finish()

    def fail(self) -> None:
        """Answer with status 500, or cut an answer that has begun: the client must not take it for a whole one."""
        if self.sent:
            self.connection.stream.close()
        elif not self.connection.stream.closed():
            self.connection.write_headers(
                ResponseStartLine("", 500, "Internal Server Error"), HTTPHeaders({"Content-Length": "0"})
            )
            self.connection.finish()
        self.status = 500

    def _require_start(self) -> None:
        if not self.status:
            raise RuntimeError("the application did not call start_response")

    async def _send(self, chunk: bytes) -> None:
        body = chunk if self.body_expected else b""
        if self.sent:
            await self.connection.write(body)
            return
        if self.status != 304:
            self.headers.setdefault("Content-Type", "text/html; charset=UTF-8")
        self.headers.setdefault("Server", f"TornadoServer/{tornado.version}")
        if self.headers.get("Content-Type", "").startswith("text/event-stream"):
            self.headers.setdefault("X-Accel-Buffering", "no")
        await self.connection.write_headers(ResponseStartLine("", self.status, self.reason), self.headers, body)
        self.sent = True


class PromptEvents(OutputTransform):
    """Asks nginx to pass server-sent events on at once: over TLS it would collect them."""

    def transform_first_chunk(self, *args: Any, **kwargs: Any) -> tuple[int, HTTPHeaders, bytes]:
        """Add nginx's header for that, which it keeps to itself."""
        status, headers, chunk = super().transform_first_chunk(*args, **kwargs)
        if headers.get("Content-Type", "").startswith("text/event-stream"):
            headers.setdefault("X-Accel-Buffering", "no")
        return status, headers, chunk


class ContextExecutor(ThreadPoolExecutor):
    """Threads that know the request that they work for, as tasks do."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn`` in a thread, in the context of whoever asks for it."""
        return super().submit(functools.partial(contextvars.copy_context().run, fn, *args, **kwargs))


def is_wsgi(thing: Any) -> bool:
    """Tell whether something can be called as PEP 3333 says, unlike a factory, a Tornado or an ASGI application."""
    try:
        inspect.signature(thing).bind({}, print)
    except TypeError:
        return False
    except ValueError:  # written in C, and says nothing of its arguments
        return callable(thing)
    return True


def own_frames(trace: TracebackType | None) -> TracebackType | None:
    """Skip the frames of this file and of the import machinery at the start of a traceback."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in (
        __name__,
        "importlib",
    ):
        trace = trace.tb_next
    return trace


async def load_application(options: Options) -> Application | WSGIContainer:
    """Import the application, or call what makes it; raises RunnerError."""
    module, attribute = options.target
    expected = WSGI_EXPECTED if options.wsgi else APPLICATION_EXPECTED
    try:
        found: Any = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name, None)
        made = found() if not options.wsgi and callable(found) and not isinstance(found, Application) else found
        application = await made if inspect.isawaitable(made) else made
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise RunnerError(
                f"cannot import {module}: no module named {error.name} in {Path.cwd()} or the environment; "
                f"expected {attribute} in it, {expected}"
            ) from None
        raise failure(module, attribute, error) from error
    except (Exception, SystemExit) as error:
        raise failure(module, attribute, error) from error
    if found is None:
        raise RunnerError(f"module {module} has no {attribute}; expected {expected}")
    if not (is_wsgi(application) if options.wsgi else isinstance(application, Application)):
        what = f"{module}:{attribute}" if application is found else f"what {module}:{attribute} returned"
        raise RunnerError(f"{what} is of type {type(application).__name__}; expected {expected}")
    return (
        WsgiApplication(application, ContextExecutor(options.threads or DEFAULT_THREADS))
        if options.wsgi
        else cast(Application, application)
    )


def failure(module: str, attribute: str, error: BaseException) -> RunnerError:
    """Say that the application's own code failed, before or after it was imported."""
    error.__traceback__ = own_frames(error.__traceback__)
    doing = f"cannot import {module}" if module not in sys.modules else f"cannot make {module}:{attribute}"
    return RunnerError(f"{doing}: {''.join(traceback.format_exception_only(error)[-1:]).strip()}")


def switch_on_debug(application: Application | WSGIContainer) -> None:
    """Do to an application that exists what Tornado does to one that is made with ``debug=True``."""
    if isinstance(application, WSGIContainer):
        autoreload.start()
        return
    settings = application.settings
    settings["debug"] = True
    settings.setdefault("autoreload", True)
    settings.setdefault("compiled_template_cache", False)
    settings.setdefault("static_hash_cache", False)
    settings.setdefault("serve_traceback", True)
    if settings["autoreload"]:
        autoreload.start()


# Metrics


class Histogram:
    """How often something took how many seconds."""

    def __init__(self) -> None:
        """Count from zero."""
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds

    def samples(self) -> dict[str, float]:
        """Return the samples of the text format: those of a bucket contain those of all smaller ones."""
        bounds = (*map(str, BUCKETS), "+Inf")
        found: dict[str, float] = {
            f'_bucket{{le="{bound}"}}': count for bound, count in zip(bounds, itertools.accumulate(self.counts), strict=True)
        }
        return found | {"_sum": self.sum, "_count": sum(self.counts)}


class Metrics:
    """What a process tells Prometheus of itself and its server, in Prometheus' text format.

    https://prometheus.io/docs/instrumenting/exposition_formats/. What each process has goes by the names that Prometheus'
    own client libraries give it. Whose numbers they are is for who asks to say: it knows which socket is whose.
    """

    def __init__(self, server: Server, path: Path) -> None:
        """Answer on a unix socket; raises RunnerError."""
        self.server = server
        self.began = time.time()
        self.lag = Histogram()
        try:
            bound = netutil.bind_unix_socket(str(path), mode=0o660)
        except (OSError, ValueError) as error:
            reason = describe(error) if isinstance(error, OSError) else "it exists and is not a socket"
            raise RunnerError(f"cannot listen on {path} for --metrics: {reason}") from None
        HTTPServer(self.answer).add_socket(Listener(fileno=bound.detach()))
        self.wait_for_lag()

    def wait_for_lag(self) -> None:
        """Let the event loop come to this again."""
        loop = asyncio.get_running_loop()
        due = loop.time() + LAG_INTERVAL
        loop.call_at(due, self.note_lag, due)

    def note_lag(self, due: float) -> None:
        """Note how much later than at ``due`` the event loop has come to this, as to all that was due then."""
        self.lag.add(max(asyncio.get_running_loop().time() - due, 0))
        self.wait_for_lag()

    def answer(self, request: HTTPServerRequest) -> None:
        """Answer a request, whatever its path is."""
        body = "".join(f"{line}\n" for line in self.lines()).encode()
        headers = HTTPHeaders({"Content-Type": "text/plain; version=0.0.4", "Content-Length": str(len(body))})
        connection = cast(HTTPConnection, request.connection)
        connection.write_headers(ResponseStartLine("", 200, "OK"), headers, body)
        connection.finish()

    def lines(self) -> Iterator[str]:
        """Yield the text, line by line."""
        for kind, name, meaning, value in self.families():
            yield f"# HELP {name} {meaning}"
            yield f"# TYPE {name} {kind}"
            for suffix, number in (value if isinstance(value, dict) else {"": value}).items():
                yield f"{name}{suffix} {number}"

    def families(self) -> Iterator[tuple[str, str, str, float | dict[str, float]]]:
        """Yield type, name and meaning of each metric, and its value, or its values by what follows the name."""
        server = self.server
        statuses: dict[str, float] = {f'{{status="{name}"}}': server.statuses[number] for number, name in enumerate(STATUSES)}
        websockets = sum(not stream.closed() for stream in server.websockets)
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        files = sum(1 for _file in Path("/proc/self/fd").iterdir()) - 1  # without the one that lists them
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        yield "counter", "tornado_requests_total", "Requests that are over, by the class of their answer's status.", statuses
        yield "gauge", "tornado_requests_in_progress", "Requests that wait for their answer, or for its end.", len(server.busy)
        yield (
            "histogram",
            "tornado_request_duration_seconds",
            "Time from a request's headers to the end of its answer.",
            server.durations.samples(),
        )
        yield "gauge", "tornado_websockets_open", "Websockets that are open.", websockets
        yield (
            "histogram",
            "tornado_event_loop_lag_seconds",
            "How late the event loop came to a callback, looked at once a second.",
            self.lag.samples(),
        )
        yield "counter", "process_cpu_seconds_total", "CPU time of the process, user and system.", time.process_time()
        yield "gauge", "process_resident_memory_bytes", "Resident memory size.", memory
        yield "gauge", "process_open_fds", "Open file descriptors.", files
        yield "gauge", "process_max_fds", "How many file descriptors may be open.", limit
        yield "gauge", "process_start_time_seconds", "When the process began, in unix time.", self.began


# The server


class Incoming(HTTPMessageDelegate):
    """Passes on what is read of a request, notes its id and begin, and keeps the connection open when it asks for a websocket.

    A server that drains ends each connection with its answer: a websocket would be cut before it could be closed with a code.
    """

    def __init__(self, delegate: HTTPMessageDelegate, exchange: HTTP1Connection, *, xheaders: bool) -> None:
        """Pass on to ``delegate``; with ``xheaders``, a proxy says what the request's id is."""
        self.delegate = delegate
        self.exchange = exchange
        self.xheaders = xheaders
        self.began: float | None = None

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> Awaitable[None] | None:
        """Look at the headers, after the connection has and before the application does: in the context that it gets."""
        found = re.fullmatch(r"[\w.-]{1,128}", headers.get("X-Request-ID", ""), re.ASCII) if self.xheaders else None
        REQUEST_ID.set(found[0] if found else "")
        self.began = time.monotonic()
        if is_handshake(headers):
            self.exchange._disconnect_on_finish = False
        return self.delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Pass on a part of the body."""
        return self.delegate.data_received(chunk)

    def finish(self) -> None:
        """Pass on the end of the request."""
        self.delegate.finish()

    def on_connection_close(self) -> None:
        """Pass on that there is no more to come."""
        self.delegate.on_connection_close()


def is_handshake(headers: HTTPHeaders | None) -> bool:
    """Tell whether a request asks for a websocket."""
    return headers is not None and headers.get("Upgrade", "").lower() == "websocket"


class Server(HTTPServer):
    """An HTTPServer that can be drained.

    ``HTTPServer.stop`` leaves open connections alone, which then are served for as long as their clients like, and
    ``close_all_connections`` cuts requests in flight. This one knows the exchange (a request and its answer) that each
    connection is at, through the two methods by which a server learns of them, tells the busy from the idle, and counts:
    an exchange is over when its connection waits for the next one, or has ended.

    Not documented by Tornado, and so pinned by tests: ``conn_params.no_keep_alive`` is read at the start of each request;
    an exchange's ``_request_start_line`` and ``_request_headers`` are None until then, its ``_response_start_line`` until the
    application answers, and its ``stream`` is, once it has become a websocket; its ``_disconnect_on_finish``
    says ``Connection: close`` and does it; a stream's ``_read_buffer_size`` is how much has been read and not yet used.
    """

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Initialize as an HTTPServer does."""
        super().initialize(*args, **kwargs)
        self.incoming: dict[HTTP1ServerConnection, Incoming] = {}
        self.websockets: weakref.WeakSet[IOStream] = weakref.WeakSet()
        self.statuses: collections.Counter[int] = collections.Counter()
        self.durations = Histogram()

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Note that a connection waits for its first or next request."""
        connection, exchange = cast(HTTP1ServerConnection, server_conn), cast(HTTP1Connection, request_conn)
        self.count(self.incoming.get(connection))
        incoming = Incoming(super().start_request(server_conn, request_conn), exchange, xheaders=self.xheaders)
        self.incoming[connection] = incoming
        return incoming

    def on_close(self, server_conn: object) -> None:
        """Note that a connection has ended, or has become a websocket."""
        connection = cast(HTTP1ServerConnection, server_conn)
        incoming = self.incoming.pop(connection, None)
        self.count(incoming)
        if incoming is not None and incoming.exchange.stream is None:
            self.websockets.add(connection.stream)
        super().on_close(server_conn)

    def count(self, incoming: Incoming | None) -> None:
        """Count a request that is over, if there was one."""
        if incoming is not None and incoming.began is not None:
            answer = incoming.exchange._response_start_line
            self.statuses[0 if answer is None else answer.code // 100] += 1
            self.durations.add(time.monotonic() - incoming.began)

    @property
    def busy(self) -> list[HTTP1Connection]:
        """The exchanges whose request has been read, at least its headers."""
        exchanges = [incoming.exchange for incoming in self.incoming.values()]
        return [exchange for exchange in exchanges if exchange._request_start_line is not None]

    def end_keep_alive(self) -> None:
        """Let this answer, or the next one, be the last on each connection."""
        self.conn_params.no_keep_alive = True
        for exchange in self.busy:
            exchange._disconnect_on_finish = not is_handshake(exchange._request_headers)

    def close_idle(self) -> None:
        """Close the connections on which no byte of a request has arrived."""
        for connection, incoming in list(self.incoming.items()):
            stream, exchange = connection.stream, incoming.exchange
            # A stream that does not read has just read a request, which is looked at in the loop's next round.
            waiting = exchange._request_start_line is None and stream.reading() and not stream._read_buffer_size
            if waiting and not stream.closed() and not is_readable(stream.socket):
                stream.close()


def is_readable(connection: socket.socket) -> bool:
    """Tell whether the kernel holds something that the process has not read."""
    poll = select.poll()  # select.select takes no descriptor above 1023
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def close_websockets() -> list[IOStream]:
    """Start to close every websocket, and return the streams, which are closed once the clients have agreed.

    Tornado keeps no list of its websockets, and they have left the server's connections. The garbage collector knows
    every object there is: asking it, once, at the end, needs no hook in the application and costs nothing before.
    """
    streams = []
    for thing in gc.get_objects():
        # Not isinstance(), which asks the object itself: a lazy proxy would come to life.
        connection = getattr(thing, "ws_connection", None) if issubclass(type(thing), WebSocketHandler) else None
        if connection is not None and connection.stream is not None:
            connection.close(SERVICE_RESTART, "service restart")
            streams.append(connection.stream)
    return streams


def make_tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Read a certificate chain and its key; raises RunnerError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password=str)  # an empty one: else OpenSSL asks the terminal for it
    except OSError as error:
        raise RunnerError(f"cannot serve TLS with --certificate {certificate} --key {key}: {describe(error)}") from None
    return context


# The process


class Runner:
    """One run of the program: what it holds, and what it does when."""

    def __init__(self, options: Options) -> None:
        """Hold nothing yet."""
        self.options = options
        self.tls: ssl.SSLContext | None = None
        self.pid_file: PidFile | None = None
        self.endpoint: Endpoint | None = None
        self.replaced: list[Predecessor] = []
        self.parent: socket.socket | None = None
        self.served = mmap.mmap(-1, 1)  # shared with forked children: not 0 once one of them serves
        self.stopping = asyncio.Event()

    def run(self) -> None:
        """Serve until told to stop; raises RunnerError."""
        options = self.options
        try:
            lock, listeners = take_over()
            if not listeners:  # a reload has nothing to replace any more
                self.replaced = [one for one in map(Predecessor, options.replace) if one.fd is not None]
            if options.pid_file is not None and not self.replaced:
                self.pid_file = PidFile(options.pid_file, lock)
            if options.certificate is not None and options.key is not None:
                self.tls = make_tls_context(options.certificate, options.key)
            if options.fork > 1 or listeners:
                self.endpoint = Endpoint(options, listeners)
            if options.fork > 1:
                self.fork()
            asyncio.run(self.serve())
        except RunnerError as error:
            if self.parent is None:
                raise
            self.fail_child(error)
        finally:
            self.release()

    def release(self) -> None:
        """Remove the socket and the pid file."""
        if self.endpoint is not None:
            self.endpoint.withdraw()
        if self.pid_file is not None:
            self.pid_file.remove()

    def leave(self, status: int) -> NoReturn:
        """End the process now, whatever still runs in it."""
        self.release()
        logging.shutdown()
        os._exit(status)

    # Serving

    async def serve(self) -> None:
        """Make the application, serve it until a signal, drain."""
        options = self.options
        loop = asyncio.get_running_loop()
        try:
            application = await load_application(options)
        except RunnerError as error:
            if not options.debug or error.__cause__ is None:
                raise
            await self.wait_for_edit(error, error.__cause__)
            return
        if isinstance(application, Application):
            application.add_transform(PromptEvents)
        server = Server(
            application,
            xheaders=options.xheaders,
            trusted_downstream=options.trusted_downstream,
            max_body_size=options.max_body_size,
            idle_connection_timeout=options.idle_timeout,
            ssl_options=self.tls,
        )
        if options.metrics is not None:
            Metrics(server, own_path(options.metrics))
        if self.endpoint is None:
            self.endpoint = await self.take_place()
        server.add_sockets(self.endpoint.listeners)
        self.served[0] = 1
        self.handle_signals()
        if self.parent is not None:
            loop.add_reader(self.parent, self.on_parent, self.parent)
        self.prepare_reload()  # an application that has its own debug settings reloads without --debug, too
        if options.debug:
            switch_on_debug(application)
        self.outlive_readers()
        log.info(
            "serving %s on %s (Tornado %s, Python %s)",
            ":".join(options.target),
            self.endpoint,
            tornado.version,
            platform.python_version(),
        )
        self.stop_replaced()
        await self.stopping.wait()
        await self.drain(server, self.endpoint)

    async def take_place(self) -> Endpoint:
        """Take the pid file and the socket or port, from the processes to replace if there are any; raises RunnerError."""
        options = self.options
        if not self.replaced:
            return Endpoint(options)
        if options.pid_file is not None:
            self.pid_file = PidFile(options.pid_file, replaced=[one.pid for one in self.replaced])
        if options.socket is not None or options.reuse_port:
            return Endpoint(options, replace=True)
        loop = asyncio.get_running_loop()
        end = loop.time() + options.drain + 2 * KILL_GRACE
        self.stop_replaced()
        while True:
            try:
                return Endpoint(options)
            except RunnerError:
                if loop.time() > end:
                    raise
            await asyncio.sleep(DRAIN_STEP)

    def stop_replaced(self) -> None:
        """Tell the processes whose place is taken to drain; one that does not end in time is killed."""
        for one in self.replaced:
            log.info("taking the place of pid %d", one.pid)
            one.send(signal.SIGTERM)
            asyncio.get_running_loop().call_later(self.options.drain + KILL_GRACE, one.kill)
        self.replaced = []

    def outlive_readers(self) -> None:
        """Serve on when whoever reads stdout and stderr is gone, such as a supervisord that was killed.

        Writing to such a pipe raises BrokenPipeError, wherever in the application that is. The kernel reports the end of
        the last reader as an error of the pipe, which asyncio takes for something to read.
        """
        for fd in (1, 2):
            with contextlib.suppress(OSError):  # it is closed
                if stat.S_ISFIFO(os.fstat(fd).st_mode):
                    asyncio.get_running_loop().add_reader(fd, self.discard_output, fd)

    def discard_output(self, fd: int) -> None:
        """Lead what is written to a pipe without a reader to nowhere."""
        asyncio.get_running_loop().remove_reader(fd)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, fd)
        os.close(null)

    def handle_signals(self) -> None:
        """Stop at the first signal; until now, it ended the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.on_signal, number)

    def on_signal(self, number: signal.Signals) -> None:
        """Stop, or end the process if it is stopping already."""
        if self.stopping.is_set():
            log.warning("%s again: exiting at once", number.name)
            self.leave(1)
        log.info("%s: stopping", number.name)
        self.stopping.set()

    async def drain(self, server: Server, endpoint: Endpoint) -> None:
        """Finish what there is, within ``--drain`` seconds."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        end = start + self.options.drain
        server.end_keep_alive()
        endpoint.withdraw()
        websockets = close_websockets()
        log.info(
            "draining for at most %g s: %d requests, %d websockets",
            self.options.drain,
            len(server.busy),
            len(websockets),
        )
        # Who has connected by now may wait to be accepted, and would be cut off with the listening socket.
        await asyncio.sleep(DRAIN_STEP)
        accept_until = end if self.options.socket else start + ACCEPT_GRACE
        while any(map(is_readable, endpoint.listeners)) and loop.time() < accept_until:
            await asyncio.sleep(0)
        server.stop()
        # A request in flight, or one that still came on an open connection, may have become a websocket.
        while server.incoming or not all(stream.closed() for stream in websockets) or (websockets := close_websockets()):
            if loop.time() >= end:
                log.warning("the drain is over: %d requests are cut", len(server.busy))
                close_websockets()
                self.leave(0)
            if loop.time() >= start + IDLE_GRACE:
                server.close_idle()
            await asyncio.sleep(DRAIN_STEP)
        log.info("drained after %.1f s", loop.time() - start)
        # Now the event loop cancels its tasks and Python waits for its threads; a thread that never ends must not last.
        timer = threading.Timer(max(end - loop.time(), 1), self.leave, [0])
        timer.daemon = True
        timer.start()

    # Reloading

    def prepare_reload(self) -> None:
        """Reload on changes of the files to watch too, and lose neither lock nor connections by it."""
        for path in self.options.watch:
            autoreload.watch(str(path.absolute()))
        autoreload.add_reload_hook(functools.partial(self.hand_over, Path.cwd()))

    def hand_over(self, directory: Path) -> None:
        """Leave the lock and the listening sockets to the program that takes this one's place, in the same process."""
        listeners = [] if self.endpoint is None else [listener.fileno() for listener in self.endpoint.listeners]
        lock = None if self.pid_file is None else self.pid_file.fd
        for fd in (*listeners, lock):
            if fd is not None:
                fcntl.fcntl(fd, fcntl.F_SETFD, 0)
        os.environ[HANDED_OVER] = json.dumps([lock, listeners])
        for handler in logging.getLogger().handlers:
            handler.flush()
        os.chdir(directory)

    async def wait_for_edit(self, error: RunnerError, cause: BaseException) -> None:
        """Wait until the code that failed was changed, which reloads it."""
        log.error("%s; waiting for a change", error, exc_info=cause)
        files = {frame.filename for frame in traceback.extract_tb(cause.__traceback__)}
        if isinstance(cause, SyntaxError) and cause.filename is not None:
            files.add(cause.filename)
        for file in files:
            autoreload.watch(file)
        self.prepare_reload()
        self.handle_signals()
        autoreload.start()
        await self.stopping.wait()

    # Forking

    def fork(self) -> None:
        """Return in each of the children; the parent ends in here when they have, by SystemExit or RunnerError.

        `tornado.process.fork_processes` replaces a child that dies, but leaves the children alone when the parent gets
        a signal or dies. So they watch a socket whose other end is the parent's alone: when it closes, they drain.
        """
        ours, theirs = socket.socketpair()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, functools.partial(self.stop_children, os.getpid(), ours))
        try:
            process.fork_processes(self.options.fork)
        except RuntimeError:
            raise RunnerError("giving up: the children keep dying") from None
        except SystemExit:
            if not self.served[0] and ours.fileno() != -1:
                raise RunnerError("giving up: no child could serve") from None
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ours.close()
        if is_readable(theirs):  # the parent stopped before this child began
            sys.exit(0)
        if self.pid_file is not None:
            self.pid_file.disown()
        os.environ["TORNADO_PROCESS"] = str(process.task_id())
        configure_logging(self.options)
        self.parent = theirs

    def stop_children(self, parent: int, ours: socket.socket, number: int, _frame: FrameType | None) -> None:
        """Tell the children to drain, the second time kill them; the signal handler of the parent."""
        if os.getpid() != parent:  # a child that has not come far enough to have its own
            os._exit(0)
        if ours.fileno() == -1:
            log.warning("%s again: exiting at once", signal.Signals(number).name)
            for child in Path("/proc/thread-self/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
            self.leave(1)
        log.info("%s: stopping", signal.Signals(number).name)
        ours.close()
        if self.endpoint is not None:
            self.endpoint.close()

    def fail_child(self, error: RunnerError) -> None:
        """Ask the parent for another try, by a status other than 0, only if any child has got further than this one."""
        time.sleep(1)  # for the others, and to keep a child that fails each time from keeping the machine busy
        if self.served[0]:
            raise error
        report(error, self.options)

    def on_parent(self, parent: socket.socket) -> None:
        """Stop, as the parent does."""
        asyncio.get_running_loop().remove_reader(parent)
        self.stopping.set()


def take_over() -> tuple[int | None, list[int]]:
    """Return the lock and the listening sockets that a reload has left open, if there was one."""
    lock, listeners = json.loads(os.environ.pop(HANDED_OVER, "[null, []]"))
    for fd in (*listeners, lock):
        if fd is not None:
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return lock, listeners


def main() -> int:
    """Run the program and return its exit status."""
    options = parse_arguments(sys.argv[1:], os.environ)
    # Python puts this file's directory first, which is none of the application's business.
    own = str(Path(__file__).resolve().parent)
    sys.path[:] = [str(Path.cwd()), *(path for path in sys.path if path != own)]
    try:
        configure_logging(options)
    except RunnerError as error:
        sys.exit(f"runner.py: error: {error}")
    try:
        Runner(options).run()
    except RunnerError as error:
        report(error, options)
        return 1
    return 0


def report(error: RunnerError, options: Options) -> None:
    """Log why the application is not served, and say it on stderr in any case, where who started it will look."""
    log.critical("%s", error, exc_info=error.__cause__)
    if None not in options.log_to:
        sys.stderr.write(f"runner.py: error: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
