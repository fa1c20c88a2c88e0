"""Action plugin of the module push: selects the keys and apps, and packs the program that receives pushes."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail

from ansible_collections.funnel.tornado.plugins.action.release import PROGRAMS, build_entry, runner
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.push import policy
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction

#: The collection's code, and its package on a host.
CODE = Path(__file__).parents[1] / "module_utils"
PACKAGE = Path("ansible_collections/funnel/tornado/plugins/module_utils")


class ActionModule(ModuleAction):
    """Authorize SSH keys to push to apps."""

    MODULE = "push"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the module."""
        super().run(tmp, task_vars)
        _result, arguments = self.validate_argument_spec(argument_spec={"apps": {"type": "dict", "required": True}})
        try:
            apps = {name: app for name, app in load(arguments["apps"]).items() if app.source.push is not None}
        except InvalidDataError as error:
            raise AnsibleActionFail(str(error)) from error
        module_arguments = {
            "apps": {},  # contains secrets, and keys that the module does not need
            "entries": json.dumps({name: build_entry(app) for name, app in apps.items()}) if apps else "",
            "authorized_keys": policy.authorized_keys(apps),
            "program": base64.b64encode(push_program()).decode() if apps else "",
        }
        return self.run_module(module_arguments, task_vars)


def push_program() -> bytes:
    """Return the program as a reproducible Python zip application."""
    files = {"__main__.py": PROGRAMS / "push.py", "launch.py": PROGRAMS / "launch.py"}
    modules = {PACKAGE / path.relative_to(CODE): path for path in CODE.rglob("*.py")}
    files |= {str(name): path for name, path in modules.items()}
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()} | {"runner.json": runner()}
    texts |= {str(package / "__init__.py"): "" for name in modules for package in name.parents if package.name}
    archive_bytes = io.BytesIO()
    with zipfile.ZipFile(archive_bytes, "w") as archive:
        for name in sorted(texts):
            archive.writestr(zipfile.ZipInfo(name), texts[name], zipfile.ZIP_DEFLATED)
    return archive_bytes.getvalue()
