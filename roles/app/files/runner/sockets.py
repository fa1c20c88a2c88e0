"""Listening sockets: Unix sockets and TCP ports, and where an application is reached."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tornado import netutil
from tornado.ioloop import IOLoop

from .errors import RunnerError, log, reason
from .options import Options
from .pid_file import OwnedFile

ACCEPT_RETRY_DELAY = 1.0
"""Seconds to pause accepting when file descriptors run out, as asyncio's own servers do."""


class Listener(socket.socket):
    """A listening socket that pauses when the process runs out of file descriptors.

    A pending connection keeps a listening socket readable: Tornado retries at once and logs each failure (36,000 lines in two
    seconds were observed). This one retries after a second.
    """

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection; raise BlockingIOError if none can be accepted now."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            loop = IOLoop.current()
            loop.update_handler(self, IOLoop.NONE)
            loop.call_later(ACCEPT_RETRY_DELAY, self.resume)
            log.warning("cannot accept connections: %s; retrying in %g s", reason(error), ACCEPT_RETRY_DELAY)
            raise BlockingIOError(errno.EAGAIN, "no free file descriptor") from error

    def resume(self) -> None:
        """Accept connections again, unless the server has stopped."""
        if self.fileno() != -1:
            IOLoop.current().update_handler(self, IOLoop.READ)


def is_listening(path: Path) -> bool:
    """Return whether a process listens on a Unix socket; raise RunnerError if the path is another kind of file."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise RunnerError(f"cannot listen on {path}: it exists and is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(0)  # a full backlog also proves that a process listens
            probe.connect(str(path))
    except BlockingIOError:
        return True
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def is_readable(connection: socket.socket) -> bool:
    """Return whether the kernel holds unread data of a socket."""
    poll = select.poll()  # select.select takes no descriptor above 1023
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def listen_unix(path: Path, mode: int, backlog: int, *, replace: bool) -> Listener:
    """Listen on a Unix socket; its path appears when it accepts connections and has its file mode."""
    if is_listening(path) and not replace:
        raise RunnerError(f"cannot listen on {path}: another process listens on it")
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
    """The listening sockets of an application, and the path of its Unix socket, if any."""

    def __init__(self, options: Options, inherited: Sequence[int] = (), *, replace: bool = False) -> None:
        """Listen; raise RunnerError if that fails.

        :arg inherited: descriptors of listening sockets, kept open by a hot reload.
        :arg replace: whether to take over the path of a Unix socket on which another process listens.
        """
        self.options = options
        self.replace = replace
        self.file: OwnedFile | None = None
        self.listeners = [Listener(fileno=fd) for fd in inherited]
        if not self.listeners:
            try:
                self.listeners = self.open()
            except OSError as error:
                raise RunnerError(f"cannot listen on {self}: {reason(error)}") from None
        if options.socket is not None:
            self.file = OwnedFile(options.socket)

    def open(self) -> list[Listener]:
        """Bind and listen."""
        options = self.options
        if options.socket is not None:
            return [listen_unix(options.socket, options.socket_mode, options.backlog, replace=self.replace)]
        sockets = netutil.bind_sockets(options.port or 0, options.address, backlog=options.backlog, reuse_port=options.reuse_port)
        return [Listener(fileno=bound.detach()) for bound in sockets]

    def __str__(self) -> str:
        """Return the address: a URL, or ``unix:PATH``."""
        if self.options.socket is not None:
            return f"unix:{self.options.socket}"
        port = self.listeners[0].getsockname()[1] if self.listeners else self.options.port
        host = self.options.address or "*"
        scheme = "http" if self.options.certificate is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def unlink(self) -> None:
        """Remove the path of the Unix socket: new clients cannot connect, and another process may use the path."""
        if self.file is not None:
            self.file.remove()

    def close(self) -> None:
        """Stop listening in a process that does not serve."""
        self.unlink()
        for listener in self.listeners:
            listener.close()


def make_tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Load a certificate chain and its private key; raise RunnerError if that fails."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password=str)  # an empty password: OpenSSL would prompt for it otherwise
    except OSError as error:
        raise RunnerError(f"cannot serve TLS with --certificate {certificate} --key {key}: {reason(error)}") from None
    return context
