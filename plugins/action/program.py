"""Controller's half of the module program: it sees what the archive hashes to, and sends it if the host needs it."""

from __future__ import annotations

import re
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.funnel.tornado.plugins.plugin_utils.source_packing import SourceError, archive_revision, locate


class ActionModule(ActionBase):
    """Installs a program; from a file of the controller, that is sent only to a host that lacks it."""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result.

        :raises AnsibleActionFail: when the checksum is missing or wrong, or the file is, before the host is reached.
        """
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        key, archive, checksum = (str(arguments.get(name) or "") for name in ("key", "archive", "checksum"))
        if "://" in archive or not archive:
            if not re.fullmatch(r"sha256:[0-9a-f]{64}", checksum):
                raise AnsibleActionFail(
                    f'{key}.checksum: must be "sha256:" and 64 digits, as the archive is a URL; found {checksum!r}'
                )
            return self._module(arguments, task_vars)
        try:
            file = locate(archive, self._loader.get_basedir(), directory=False)
            arguments["checksum"] = f"sha256:{archive_revision(file, checksum or None)}"
        except SourceError as error:
            raise AnsibleActionFail(f"{key}.archive: {error}") from error
        result = self._module(arguments, task_vars)
        if not result.get("needs_file"):
            return result
        temporary = self._make_tmp_path()
        try:
            arguments["file"] = self._connection._shell.join_path(temporary, "archive")
            self._transfer_file(str(file), arguments["file"])
            return self._module(arguments, task_vars)
        finally:
            self._remove_tmp_path(temporary)

    def _module(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module("funnel.tornado.program", arguments, task_vars=task_vars)
        return result
