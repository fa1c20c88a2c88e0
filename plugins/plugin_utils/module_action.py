"""Base class of action plugins that run a module, and send it files that the host lacks; the operator of a run."""

from __future__ import annotations

import contextlib
import getpass
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase


class DriftError(Exception):
    """The controller cannot tell without the host that a task changes nothing."""


class ModuleAction(ActionBase):
    """Action plugin for the module ``MODULE``.

    With ``compares``, it raises :class:`DriftError` instead of contacting the host.
    """

    MODULE: str
    compares = False

    def run_module(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Run the module on the host and return its result.

        In UTF-8 mode, so that names and contents of files do not depend on the locale of the host.
        """
        self.require_host()
        given = self._task.environment or []
        self._task.environment = [{"PYTHONUTF8": "1"}, *(given if isinstance(given, list) else [given])]
        result: dict[str, Any] = self._execute_module(f"funnel.tornado.{self.MODULE}", arguments, task_vars=task_vars)
        if needs_terminal(result):
            raise AnsibleActionFail("sudo requires a terminal: remove requiretty from sudoers, or set ANSIBLE_PIPELINING=false")
        return result

    def require_host(self) -> None:
        """Raise :class:`DriftError` if the host must not be contacted."""
        if self.compares:
            raise DriftError(self.MODULE)

    @contextlib.contextmanager
    def transfer(self, source: Path | bytes) -> Iterator[str]:
        """Copy a file or data to a temporary directory on the host and yield its path there."""
        directory = self._make_tmp_path()
        try:
            path = self._connection._shell.join_path(directory, "file")
            if isinstance(source, bytes):
                self._transfer_data(path, source)
            else:
                self._transfer_file(str(source), path)
            yield path
        finally:
            self._remove_tmp_path(directory)


def needs_terminal(result: Mapping[str, Any]) -> bool:
    """Return whether sudo has refused to start the module without a terminal, in any language."""
    return bool(result.get("failed")) and bool(re.search(r"sudo: .*\btty\b", str(result.get("module_stderr")), re.IGNORECASE))


def operator() -> str:
    """Return the operator of this run as ``user@controller``."""
    return f"{getpass.getuser()}@{platform.node()}"
