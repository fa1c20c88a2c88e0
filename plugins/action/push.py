"""Controller's half of the module push: says who may push what, and packs the program that takes it."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.funnel.tornado.plugins.action.release import PROGRAMS, build_entry, runner
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.push import policy

#: The collection's own code, as a host imports it.
CODE = Path(__file__).parents[1] / "module_utils"
PACKAGE = Path("ansible_collections/funnel/tornado/plugins/module_utils")


class ActionModule(ActionBase):
    """Lets keys push to apps, and nobody else."""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        super().run(tmp, task_vars)
        _result, arguments = self.validate_argument_spec(argument_spec={"apps": {"type": "dict", "required": True}})
        try:
            apps = {name: app for name, app in load(arguments["apps"]).items() if app.source.push is not None}
        except InvalidDataError as error:
            raise AnsibleActionFail(str(error)) from error
        result: dict[str, Any] = self._execute_module(
            module_name="funnel.tornado.push",
            module_args={
                "apps": {},  # they have secrets, and keys of no concern to this
                "entries": json.dumps({name: build_entry(app) for name, app in apps.items()}) if apps else "",
                "authorized_keys": policy.authorized_keys(apps),
                "program": base64.b64encode(program()).decode() if apps else "",
            },
            task_vars=task_vars,
        )
        return result


def program() -> bytes:
    """Return the program as a zip file that Python runs (zipapp): the same bytes from the same code."""
    files = {"__main__.py": PROGRAMS / "push.py", "launch.py": PROGRAMS / "launch.py"}
    modules = {PACKAGE / path.relative_to(CODE): path for path in CODE.rglob("*.py")}
    files |= {str(name): path for name, path in modules.items()}
    texts = {name: path.read_text() for name, path in files.items()} | {"runner.json": runner()}
    texts |= {str(package / "__init__.py"): "" for name in modules for package in name.parents if package.name}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in sorted(texts):
            archive.writestr(zipfile.ZipInfo(name), texts[name], zipfile.ZIP_DEFLATED)
    return packed.getvalue()
