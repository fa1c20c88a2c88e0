#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Run a command in the live release of an app."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run
short_description: Run a command in the live release of an app
version_added: 0.1.0
description:
  - Runs the command as the user of the app, in the directory of the source, with the environment, secrets and limits of the
    app's processes. The programs of the virtual environment come first in C(PATH).
  - The command does not belong to a slot, so a concurrent deploy neither waits for it nor stops it. It has no input and no
    terminal. Processes that it leaves behind are killed when it ends.
  - Secrets of the app are masked in the output, and control characters are escaped, such as C(\\x1b).
options:
  name:
    description: The app.
    type: str
    required: true
  command:
    description: Program and arguments, quoted as in a shell, but run without one.
    type: str
    required: true
  timeout:
    description: Seconds after which the command is killed.
    type: int
    default: 3600
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode:
    support: full
    description: Runs nothing, and reports the release.
  diff_mode: {support: none}
author:
  - The funnel.tornado developers (@funnel)
seealso:
  - module: funnel.tornado.switch
"""

EXAMPLES = r"""
- name: Migrate the database
  funnel.tornado.run:
    name: shop
    command: python -m shop.migrate --to latest
    timeout: 600
  run_once: true
"""

RETURN = r"""
release:
  description: The live release, in which the command ran or would run.
  returned: always
  type: str
  sample: 3f1c0a9be2d4
rc:
  description: Exit status of the command; negative if a signal ended it. The task fails unless it is 0.
  returned: when the command ended
  type: int
output:
  description: Output of the command, stdout and stderr combined. After a failure, the message contains it.
  returned: success, except in check mode
  type: str
"""

import json
import os
import resource
import shlex

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import MIN_SECRET_LENGTH
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable, printable_message
from ansible_collections.funnel.tornado.plugins.module_utils.system import isolation
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError, query

ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "command": {"type": "str", "required": True},
    "timeout": {"type": "int", "default": 3600},
}


def main() -> None:
    """Run the command, unless in check mode."""
    os.umask(0o022)  # whatever the connection has set
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    layout, timeout = Layout(module.params["name"]), module.params["timeout"]
    release = layout.live_release()
    if release is None:
        module.fail_json(msg=f"{layout.app}: no release is live on this host", release="")
    launcher = layout.release(release) / "launch.py"
    try:
        argv = [str(launcher), "--run", *split_command(module.params["command"])]
        if module.check_mode:
            module.exit_json(changed=True, release=release)
        masked = secrets(layout, release)
        module.no_log_values.update(masked, map(printable, masked))
        result = isolation.run(
            layout.user,
            argv,
            directory=layout.release(release),
            environment={},
            timeout=timeout,
            description=f"Command of {layout.app}",
            private_tmp=False,
            open_files=supervisord_open_files(),
        )
    except (CommandError, OSError, ServiceError, ValueError) as error:
        module.fail_json(msg=printable_message(f"{layout.app}: {error}"), release=release)
    if result.status != 0:
        failure = f"{layout.app}: the command failed with exit status {result.status}:\n{result.output}"
        module.fail_json(msg=printable_message(failure.rstrip(":\n")), changed=True, release=release, rc=result.status)
    module.exit_json(changed=True, release=release, rc=result.status, output=printable(result.output))


def split_command(command: str) -> list[str]:
    """Split ``command`` into a program and its arguments.

    :raises ValueError: when it is empty, or a quote is not closed.
    """
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"command: {str(error).lower()}; found {command!r}") from error
    if not argv:
        raise ValueError(f"command: must be a program and its arguments; found {command!r}")
    return argv


def secrets(layout: Layout, release: str) -> set[str]:
    """Return the secrets of the release to mask in the output, without short ones, which occur in ordinary words."""
    values = json.loads((layout.release(release) / "secrets.json").read_text(encoding="utf-8")).values()
    return {value for value in values if len(value) >= MIN_SECRET_LENGTH}


def supervisord_open_files() -> int:
    """Return the soft limit of open files that processes inherit from supervisord."""
    soft, _hard = resource.prlimit(query("supervisor").main_pid, resource.RLIMIT_NOFILE)
    return soft


if __name__ == "__main__":
    main()
