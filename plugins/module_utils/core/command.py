"""Run a program of the host and keep what it said."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CommandResult:
    """A program that has ended: its exit status, and stdout and stderr as one text, in the order they were written.

    ``errors`` is stderr, where the two were asked for apart.
    """

    status: int
    output: str
    errors: str = ""

    def last_lines(self, count: int = 20) -> str:
        """Return the last ``count`` lines that are not empty."""
        return last_lines(f"{self.output}\n{self.errors}", count)


class CommandError(Exception):
    """A program is not there, took too long or failed. The message names it and holds its last lines."""


def run(
    argv: Sequence[str],
    *,
    timeout: float = 60.0,
    environment: Mapping[str, str] | None = None,
    check: bool = True,
) -> CommandResult:
    """Run ``argv``, without a shell and in the C locale, for at most ``timeout`` seconds; then it and its children are killed.

    ``environment`` is added to this process's own: it is the place for what must not be seen in a process list. Programs of an
    app are run by :mod:`isolation` instead.

    :raises CommandError: when it cannot be started or outlives ``timeout``, and, with ``check``, when it fails.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
            text=True,
            errors="replace",
            process_group=0,
        )
    except FileNotFoundError as error:
        raise CommandError(f"{argv[0]} is not installed on this host") from error
    except OSError as error:
        raise CommandError(f"{argv[0]} cannot be started: {error}") from error
    with process:
        try:
            output, _errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            raise CommandError(
                f"{' '.join(argv)} did not end within {timeout:g} s:\n{last_lines(_text(error.output))}"
            ) from error
    done = CommandResult(process.returncode, output)
    if check and done.status != 0:
        raise CommandError(f"{' '.join(argv)} failed with exit status {done.status}:\n{done.last_lines()}")
    return done


def _text(output: str | bytes | None) -> str:
    """Return what a program had said when it was stopped; it comes as bytes, whatever was asked for."""
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def last_lines(text: str, count: int = 20) -> str:
    """Return the last ``count`` lines of ``text`` that are not empty; only a newline ends one."""
    return "\n".join([line.rstrip() for line in text.split("\n") if line.strip()][-count:])
