"""Run a program and capture its output."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CommandResult:
    """Exit status and output of a program: stdout and stderr interleaved, or stderr in ``errors`` if captured separately."""

    status: int
    output: str
    errors: str = ""

    def last_lines(self, count: int = 20) -> str:
        """Return the last ``count`` non-empty lines."""
        return last_lines(f"{self.output}\n{self.errors}", count)


class CommandError(Exception):
    """A program is missing, timed out or failed. The message contains its name and the last lines of its output."""


#: The directories of system programs, which ``secure_path`` of sudo and the PATH of a user may lack.
SYSTEM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


class CommandTimeoutError(CommandError):
    """A program did not end in time."""


def run(
    argv: Sequence[str],
    *,
    timeout: float = 60.0,
    environment: Mapping[str, str] | None = None,
    check: bool = True,
) -> CommandResult:
    """Run ``argv`` without a shell and in the C locale; kill its process group after ``timeout`` seconds.

    ``environment`` extends the environment of this process; pass secrets there, as arguments are visible in the process list.
    :mod:`isolation` runs the programs of apps.

    :raises CommandError: if it cannot be started, exceeds ``timeout`` or, with ``check``, fails.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(environment or {}),
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # a program of another user must not write to the terminal, as if it were this process
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
            raise CommandTimeoutError(
                f"{' '.join(argv)} did not end within {timeout:g} s:\n{last_lines(_text(error.output))}"
            ) from error
    done = CommandResult(process.returncode, output)
    if check and done.status != 0:
        raise CommandError(f"{' '.join(argv)} failed with exit status {done.status}:\n{done.last_lines()}")
    return done


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    merged = {**os.environ, "LC_ALL": "C.UTF-8", **given}
    directories = [*filter(None, merged.get("PATH", "").split(":")), *SYSTEM_PATH]
    return {**merged, "PATH": ":".join(dict.fromkeys(directories))}


def _text(output: str | bytes | None) -> str:
    """Decode the output of a program that timed out: it is bytes, even in text mode."""
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def last_lines(text: str, count: int = 20) -> str:
    """Return the last ``count`` non-empty lines of ``text``, split at newlines only."""
    return "\n".join([line.rstrip() for line in text.split("\n") if line.strip()][-count:])
