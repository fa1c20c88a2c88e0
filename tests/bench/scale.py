"""Cost of large fleets for the controller: the hosts are simulated from the answers of one real host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.hosts import FLEET, HERE, ROOT, TIMEOUT, Fleet
from tests.bench.table import Table, say

#: Numbers of hosts and forks.
SIZES = ((1, 20), (100, 20), (100, 50), (300, 50), (1000, 50))
#: Measures a command in a process of its own, whose children are only those of this run.
MEASURE = """
import json, resource, subprocess, sys, time
began = time.monotonic()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss, done.returncode, done.stdout]))
"""


def inventory(directory: Path, count: int) -> Path:
    """Write an inventory of simulated hosts; return its path."""
    hosts: dict[str, dict[str, str]] = {f"web{number:04}.example.com": {} for number in range(1, count + 1)}
    variables = {"ansible_connection": "recorded", "ansible_python_interpreter": "/usr/bin/python3"}
    path = directory / "inventory.json"
    path.write_text(json.dumps({"app_hosts": {"hosts": hosts, "vars": variables}}))
    return path


def run_site(fleet: Fleet, host: str, count: int, forks: int) -> tuple[float, float, float]:
    """Run site.yml; return its duration and CPU time in seconds, and the memory of its largest process in MB."""
    directory = Path(tempfile.mkdtemp(dir=fleet.directory))
    command = ["ansible-playbook", "site.yml", "-i", str(inventory(directory, count)), "-f", str(forks)]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ANSIBLE_CONNECTION_PLUGINS": str(HERE / "connection_plugins"),
        "RECORDED_ANSWERS": str(directory),
        "RECORDED_FROM": json.dumps([sys.executable, "-m", "tools.hosts", "ssh", "--fleet", FLEET, host]),
        "RECORDED_HOST": "web0001.example.com",
    }
    measured = [sys.executable, "-c", MEASURE, *command, "-e", f"@{fleet.variables}"]
    done = subprocess.run(measured, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    seconds, cpu, peak, status, output = json.loads(done.stdout)
    if status or output.count("changed=0 ") != count:
        sys.exit(f"site.yml on {count} simulated hosts failed or changed something:\n{output[-3000:]}")
    return seconds, cpu, peak / 1024


def measure(fleet: Fleet, host: str) -> Table:
    """Run site.yml without changes for each number of hosts and forks."""
    table = Table(
        "Fleets",
        "A run of `site.yml` without changes on simulated hosts, each of which answers after the time that a real host took.\n"
        "CPU seconds are those of the controller, memory is the peak of its largest process.",
        ["hosts", "forks", "seconds", "CPU seconds", "per further host", "memory in MB"],
    )
    single = 0.0
    for count, forks in SIZES:
        seconds, cpu, peak = run_site(fleet, host, count, forks)
        single = single or cpu
        further = f"{(cpu - single) / (count - 1):.2f}" if count > 1 else ""
        table.rows.append([f"{count:,}", str(forks), f"{seconds:.1f}", f"{cpu:.1f}", further, f"{peak:.0f}"])
        say(f"  {count} hosts, {forks} forks: {seconds:.1f} s, CPU {cpu:.1f} s, {peak:.0f} MB")
    return table
