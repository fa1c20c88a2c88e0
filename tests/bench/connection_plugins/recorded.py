"""Connection plugin that answers for many hosts as one real host did in the same run, after the time that this host took."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: recorded
short_description: replay the answers of a host
description: >-
  Simulates any number of hosts without any work outside of the controller. The environment variable C(RECORDED_FROM) is the
  command, a list in JSON, that connects to the real host, which answers for the host C(RECORDED_HOST). C(RECORDED_ANSWERS) is
  a directory for its answers, a new one for each run, as digests in them are keyed by run.
author: the maintainers of funnel.tornado
options:
  host:
    description: Name of the simulated host.
    default: inventory_hostname
    vars: [{name: inventory_hostname}]
"""

#: The module in the payload that Ansible sends.
MODULE = re.compile(rb"ansible_collections\.funnel\.tornado\.plugins\.modules\.(\w+)")


#: Maximum seconds to wait for the answer of the real host.
TIMEOUT = 60


class Connection(ConnectionBase):
    """Answers a module like the host did whose answers were recorded."""

    transport = "recorded"
    has_pipelining = True
    always_pipeline_modules = True

    def _connect(self) -> Connection:
        """Do nothing: there is no host."""
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, *_flags: bool, **_options: bool) -> tuple[int, bytes, bytes]:
        """Return the status and the output of a module."""
        found = MODULE.search(in_data or b"")
        if found is None:
            raise AnsibleConnectionFailure(f"not the command of a module of the collection: {cmd}")
        answer = Path(os.environ["RECORDED_ANSWERS"], f"{found[1].decode()}.json")
        if self.get_option("host") == os.environ["RECORDED_HOST"]:
            done = record(json.loads(os.environ["RECORDED_FROM"]), cmd, in_data)
            unfinished = answer.with_suffix(".new")
            unfinished.write_text(json.dumps(done))
            unfinished.replace(answer)
        else:
            done = replay(answer)
        return done["status"], done["output"].encode(), done["errors"].encode()

    def put_file(self, *paths: str) -> None:
        """Refuse the transfer, as the run under test has nothing to change."""
        raise AnsibleConnectionFailure(f"a file would be transferred: {paths}")

    def fetch_file(self, *paths: str) -> None:
        """Refuse the transfer, like that to the host."""
        self.put_file(*paths)

    def close(self) -> None:
        """Do nothing."""


def record(command: list[str], cmd: str, in_data: bytes | None) -> dict[str, Any]:
    """Run a command on the real host; return its answer and duration."""
    began = time.monotonic()
    done = subprocess.run([*command, cmd], input=in_data, capture_output=True, check=False)
    seconds = time.monotonic() - began
    return {"seconds": seconds, "status": done.returncode, "output": done.stdout.decode(), "errors": done.stderr.decode()}


def replay(answer: Path) -> dict[str, Any]:
    """Wait for the answer of the real host, and then as long as that host took."""
    for _ in range(TIMEOUT * 100):
        if answer.exists():
            done: dict[str, Any] = json.loads(answer.read_text())
            time.sleep(done["seconds"])
            return done
        time.sleep(0.01)
    raise AnsibleConnectionFailure(f"the real host did not answer to {answer.stem}")
