"""The process: serves the application from start to graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import signal
import socket
import ssl
import stat
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from tornado import process

from .application import Target, make_event_loop
from .draining import drain
from .errors import RunnerError, log
from .forking import Children
from .interface import AppServer
from .logs import configure_logging, per_process_path
from .metrics import Metrics
from .options import Options, parse_arguments
from .pid_file import PidFile
from .reloading import Descriptors, inherit_descriptors
from .replacing import Replacement
from .server import make_tornado_server
from .sockets import Endpoint, make_tls_context


class Runner:
    """One run of the program, with the resources that it holds."""

    def __init__(self, options: Options) -> None:
        """Acquire nothing yet."""
        self.options = options
        self.arguments = sys.argv[1:]
        self.target = Target(options)
        self.tls: ssl.SSLContext | None = None
        self.pid_file: PidFile | None = None
        self.endpoint: Endpoint | None = None
        self.replacement: Replacement | None = None
        self.parent: socket.socket | None = None
        self.serving = mmap.mmap(-1, 1)  # shared with forked children: not 0 once one of them serves
        self.stopping = asyncio.Event()

    def run(self) -> None:
        """Serve until a signal stops the process; raise RunnerError if the application cannot be served."""
        options = self.options
        try:
            lock, listeners = inherit_descriptors()
            if not listeners and (replacement := Replacement(options)).predecessors:  # a reload has replaced them before
                self.replacement = replacement
            if options.pid_file is not None and self.replacement is None:
                self.pid_file = PidFile(options.pid_file, lock)
            if options.certificate is not None and options.key is not None:
                self.tls = make_tls_context(options.certificate, options.key)
            if options.fork > 1 or listeners:
                self.endpoint = Endpoint(options, listeners)
            if options.fork > 1:
                self.fork()
            self.run_event_loop()
        except RunnerError as error:
            if self.parent is None:
                raise
            self.fail_child(error)
        finally:
            self.remove_files()

    def remove_files(self) -> None:
        """Remove the socket and the pid file."""
        if self.endpoint is not None:
            self.endpoint.unlink()
        if self.pid_file is not None:
            self.pid_file.remove()

    def exit_now(self, status: int) -> NoReturn:
        """End the process immediately, with all its tasks and threads."""
        self.remove_files()
        logging.shutdown()
        os._exit(status)

    # Serving

    def run_event_loop(self) -> None:
        """Load the application, which finds an event loop that does not run yet, then run it."""
        with asyncio.Runner(loop_factory=lambda: make_event_loop(self.options)) as runner:
            asyncio.set_event_loop(runner.get_loop())
            sys.argv[1:] = []  # those of the runner mean nothing to an application that parses its command line
            try:
                self.target.load()
                runner.run(self.serve())
            except RunnerError as error:
                if not self.options.debug or error.__cause__ is None:
                    raise
                runner.run(self.wait_for_change(error, error.__cause__))

    async def serve(self) -> None:
        """Create the application, serve it until a signal, and drain."""
        options = self.options
        application = await self.target.application()
        server = self.make_server(application)
        await server.startup()
        if self.endpoint is None:
            self.endpoint = await self.open_endpoint()
        await server.serve_on(self.endpoint.listeners)
        self.serving[0] = 1
        self.handle_signals()
        if self.parent is not None:
            asyncio.get_running_loop().add_reader(self.parent, self.on_parent_exit, self.parent)
        if options.debug or "tornado.autoreload" in sys.modules:  # an application's own debug setting also reloads
            self.prepare_reload()
        if options.debug:
            from .debugging import enable_debug

            enable_debug(application)
        self.survive_broken_pipes()
        log.info(
            "serving %s on %s (%s, Python %s)",
            ":".join(options.target),
            self.endpoint,
            server.name,
            ".".join(map(str, sys.version_info[:3])),
        )
        if self.replacement is not None:
            self.replacement.stop()
        await self.stopping.wait()
        await drain(server, self.endpoint, options, self.exit_now)

    def make_server(self, application: Any) -> AppServer:
        """Create the server, which does not listen yet, and its metrics."""
        options = self.options
        server: AppServer
        if options.asgi:
            try:
                from .asgi import AsgiServer  # imports uvicorn, which the environments of other applications do not have
            except ModuleNotFoundError as error:
                raise RunnerError(f"cannot serve an ASGI application: {error.name} is not in the environment") from None
            server = AsgiServer(application, options, self.tls)
        else:
            server = make_tornado_server(application, options, self.tls)
        if options.metrics is not None:
            Metrics(server, per_process_path(options.metrics))
        return server

    async def open_endpoint(self) -> Endpoint:
        """Open the socket or port, or take it over with the pid file; raise RunnerError if that fails."""
        if self.replacement is None:
            return Endpoint(self.options)
        self.pid_file = self.replacement.take_pid_file()
        return await self.replacement.take_endpoint()

    def survive_broken_pipes(self) -> None:
        """Keep serving when the reader of stdout and stderr exits, such as a supervisord that was killed.

        Writing to such a pipe raises BrokenPipeError anywhere in the application. The kernel reports the exit of the last reader
        as an error of the pipe, which asyncio treats as readable.
        """
        for fd in (1, 2):
            with contextlib.suppress(OSError):  # closed
                if stat.S_ISFIFO(os.fstat(fd).st_mode):
                    asyncio.get_running_loop().add_reader(fd, self.discard_output, fd)

    def discard_output(self, fd: int) -> None:
        """Redirect a pipe without a reader to ``/dev/null``."""
        asyncio.get_running_loop().remove_reader(fd)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, fd)
        os.close(null)

    def handle_signals(self) -> None:
        """Shut down gracefully at the first signal, which ended the process immediately until now."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.on_signal, number)

    def on_signal(self, number: signal.Signals) -> None:
        """Start the graceful shutdown, or exit if it has started already."""
        if self.stopping.is_set():
            log.warning("received %s again: exiting immediately", number.name)
            self.exit_now(1)
        log.info("received %s: stopping", number.name)
        self.stopping.set()

    # Hot reload

    def prepare_reload(self) -> None:
        """Keep the descriptors open when changes of the code, or of the watched files, reload it."""
        from .debugging import prepare_reload

        prepare_reload(self.options.watch, self.arguments, self.open_descriptors)

    def open_descriptors(self) -> Descriptors:
        """Return the descriptors to keep open in a hot reload."""
        listeners = [] if self.endpoint is None else [listener.fileno() for listener in self.endpoint.listeners]
        return None if self.pid_file is None else self.pid_file.fd, listeners

    async def wait_for_change(self, error: RunnerError, cause: BaseException) -> None:
        """Log the failure, and wait until the code that caused it changes, which reloads it."""
        log.error("%s; waiting for a change", error, exc_info=cause)
        from .debugging import watch_failed_code

        self.prepare_reload()
        self.handle_signals()
        watch_failed_code(cause)
        await self.stopping.wait()

    # Forking

    def fork(self) -> None:
        """Return in each of the children; the parent exits in here."""
        # Set first: an error below is that of a child, which fail_child handles.
        self.parent = Children(self.endpoint, self.serving, self.exit_now).fork(self.options.fork)
        if self.pid_file is not None:
            self.pid_file.leave_to_parent()
        os.environ["TORNADO_PROCESS"] = str(process.task_id())
        configure_logging(self.options)

    def fail_child(self, error: RunnerError) -> None:
        """Exit so that the parent restarts this child, by a status other than 0, only if any child has served."""
        time.sleep(1)  # for the other children, and so that a child that always fails does not keep the CPU busy
        if self.serving[0]:
            raise error
        report(error, self.options)

    def on_parent_exit(self, parent: socket.socket) -> None:
        """Shut down gracefully together with the parent."""
        asyncio.get_running_loop().remove_reader(parent)
        self.stopping.set()


def main() -> int:
    """Run the program and return its exit status."""
    options = parse_arguments(sys.argv[1:], os.environ)
    sys.path.insert(0, str(Path.cwd()))
    try:
        configure_logging(options)
    except RunnerError as error:
        sys.exit(f"runner: error: {error}")
    try:
        Runner(options).run()
    except RunnerError as error:
        report(error, options)
        return 1
    return 0


def report(error: RunnerError, options: Options) -> None:
    """Log why the application cannot be served, and always print it to stderr as well."""
    log.critical("%s", error, exc_info=error.__cause__)
    if None not in options.log_to:
        sys.stderr.write(f"runner: error: {error}\n")
