"""Action plugin of the module program: verifies the archive, and sends it if the host lacks the program."""

from __future__ import annotations

import re
from typing import Any

from ansible.errors import AnsibleActionFail

from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction
from ansible_collections.funnel.tornado.plugins.plugin_utils.source_packing import SourceError, archive_revision, locate


class ActionModule(ModuleAction):
    """Installs a program from a URL or from a file on the controller."""

    MODULE = "program"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the module.

        :raises AnsibleActionFail: if the checksum or the file is missing or invalid, before the host is contacted.
        """
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        key, archive, checksum = (str(arguments.get(name) or "") for name in ("key", "archive", "checksum"))
        if "://" in archive or not archive:
            if not re.fullmatch(r"sha256:[0-9a-f]{64}", checksum):
                raise AnsibleActionFail(
                    f'{key}.checksum: must be "sha256:" and 64 digits, as the archive is a URL; found {checksum!r}'
                )
            return self.run_module(arguments, task_vars)
        try:
            file = locate(archive, self._loader.get_basedir(), directory=False)
            arguments["checksum"] = f"sha256:{archive_revision(file, checksum or None)}"
        except SourceError as error:
            raise AnsibleActionFail(f"{key}.archive: {error}") from error
        result = self.run_module(arguments, task_vars)
        if not result.get("needs_file"):
            return result
        with self.transfer(file) as path:
            return self.run_module(arguments | {"file": path}, task_vars)
