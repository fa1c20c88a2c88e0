"""``make bench``: how fast the collection is, as ratios against plain ways of doing the same, within one run.

Two equal hosts are booted for each round: one is provisioned by site.yml, the other by a shell script that installs the same
packages. On the host of the last round changed code is deployed, with and without clients, and three ways of serving the same app
are put under the same load, in turn.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.load import Load

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
FLEET = "bench"

BARE_ROUNDS = 3
REPEATED_ROUNDS = 5
DEPLOY_ROUNDS = 5
OUTSIDE_SECONDS = 8
LOAD_ROUNDS = 5
LOAD_SECONDS = 4
CONNECTIONS = 40


@dataclass(frozen=True)
class Throughput:
    """What wrk measured: requests per second, and the 99th percentile of the latency in milliseconds."""

    rate: float
    p99: float


@dataclass(frozen=True)
class Deploy:
    """A deploy: when its command began and ended (``time.time()``), and the seconds of each step of its switch."""

    began: float
    ended: float
    tasks: int
    steps: dict[str, float]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


def main() -> None:
    """Print the table; leave no host behind."""
    with fleet() as inventory:
        installing(inventory)
        deploying(inventory)
        serving()


def installing(inventory: Path) -> None:
    """Compare the way from a bare host to serving, and time a run that has nothing to do."""
    ours, theirs = [], []
    for number in range(BARE_ROUNDS):
        if number:
            hosts("down", "--all")
            hosts("up", "collection:bookworm", "script:bookworm")
        theirs.append(timed(lambda: ssh("script", (HERE / "install.sh").read_text())))
        ours.append(timed(lambda: provision(inventory)))
        say(f"round {number + 1}: site.yml {ours[-1]:.1f} s, shell script {theirs[-1]:.1f} s")
    again = [timed(lambda: provision(inventory)) for _ in range(REPEATED_ROUNDS)]
    row("bare host to serving", f"{median(ours):.1f} s", f"{ratio(ours, theirs):.2f}x the shell script ({median(theirs):.1f} s)")
    row("second run", f"{median(again):.1f} s", f"{tasks(provision(inventory))} tasks that touch the host")


def deploying(inventory: Path) -> None:
    """Time deploys of changed code, then see what clients notice of the switch."""
    with tempfile.TemporaryDirectory() as directory:
        code = Path(directory) / "app"
        shutil.copytree(ROOT / "files/sample_app", code)
        variables = (ROOT / "inventories/demo/group_vars/all.yml").read_text()
        file = Path(directory) / "variables.yml"
        file.write_text(variables.replace("files/sample_app", str(code)))

        def deploy() -> Deploy:
            with (code / "sample_app/web.py").open("a") as web:
                web.write("# changed\n")
            began = time.time()
            output = playbook("playbooks/deploy.yml", inventory, file)
            return Deploy(began, time.time(), tasks(output), steps(output))

        deploy()
        found = [deploy() for _ in range(DEPLOY_ROUNDS)]
        after = ("drain", "stop", "prune")
        until = [one.seconds - sum(one.steps[step] for step in after) for one in found]
        both = [sum(value for step, value in one.steps.items() if step not in ("clean", "prune")) for one in found]
        row("code-only deploy", f"{median([one.seconds for one in found]):.1f} s", f"{found[0].tasks} tasks that touch the host")
        row("  from command to switched", f"{median(until):.1f} s", "")
        row("  switch after health", f"{median([one.steps['switch'] for one in found]):.3f} s", "")
        row("  both slots run", f"{median(both):.1f} s", "")

        latencies: list[tuple[float, float]] = []
        for _ in range(DEPLOY_ROUNDS):
            with Load(addresses()["collection"]) as clients:
                time.sleep(OUTSIDE_SECONDS)
                one = deploy()
            quiet = clients.result.latency(one.began - OUTSIDE_SECONDS, one.began)
            busy = clients.result.latency(one.ended - sum(one.steps.values()), one.ended)
            latencies.append((quiet.p99, busy.p99))
        outside, during = zip(*latencies, strict=True)
        row("p99 outside of a switch", f"{median(outside):.1f} ms", "")
        row("p99 during a switch", f"{median(during):.1f} ms", f"{ratio(during, outside):.2f}x")


def steps(output: str) -> dict[str, float]:
    """Return the steps of the switch that a playbook has shown, and the seconds of each."""
    shown = re.findall(r" in slot [ab]: (.*)$", output, re.MULTILINE)
    return {name: float(seconds) for name, seconds in re.findall(r"(\w+) ([\d.]+) s", shown[-1])}


def serving() -> None:
    """Compare requests per second of the three stacks, each in turn, several times."""
    ssh("collection", (HERE / "stacks.sh").read_text())
    address = addresses()["collection"]
    stacks = {"documentation's nginx": 8081, "collection's nginx": 80, "Tornados with reuse_port": 8082}
    measured: dict[str, list[Throughput]] = {name: [] for name in stacks}
    for port in stacks.values():
        load(address, port, seconds=1)
    for _ in range(LOAD_ROUNDS):
        for name, port in stacks.items():
            measured[name].append(load(address, port, LOAD_SECONDS))
    documented, ours, direct = ([one.rate for one in found] for found in measured.values())
    for name, found in measured.items():
        row(name, f"{median([one.rate for one in found]):.0f} requests/s", f"p99 {median([one.p99 for one in found]):.1f} ms")
    row("collection / documentation", f"{ratio(ours, documented):.2f}x", "")
    row("collection / direct", f"{ratio(ours, direct):.2f}x", "")


@contextmanager
def fleet() -> Iterator[Path]:
    """Boot the hosts, give an inventory of the one that the collection provisions, and power them off again."""
    hosts("up", "collection:bookworm", "script:bookworm")
    try:
        with tempfile.TemporaryDirectory() as directory:
            inventory = Path(directory) / "inventory"
            inventory.write_text(f"#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m tools.hosts inventory --fleet {FLEET}\n")
            inventory.chmod(0o755)
            yield inventory
    finally:
        hosts("down", "--all")


def hosts(command: str, *arguments: str) -> str:
    """Call the test hosts' tool."""
    return run([sys.executable, "-m", "tools.hosts", command, "--fleet", FLEET, *arguments])


def addresses() -> dict[str, str]:
    """Return the hosts' addresses by their names."""
    return {line.split()[0]: line.split()[1] for line in hosts("list").splitlines()}


def provision(inventory: Path) -> str:
    """Run site.yml with the demo's variables."""
    return playbook("site.yml", inventory, ROOT / "inventories/demo/group_vars/all.yml")


def playbook(name: str, inventory: Path, variables: Path) -> str:
    """Run a playbook on the host that the collection provisions; return what it printed."""
    return run(["ansible-playbook", name, "-i", str(inventory), "--limit", "collection", "-e", f"@{variables}"])


def ssh(host: str, script: str) -> str:
    """Run a script on a host as root."""
    return run([sys.executable, "-m", "tools.hosts", "ssh", "--fleet", FLEET, host, "bash -seu"], script)


def load(address: str, port: int, seconds: int) -> Throughput:
    """Keep the connections busy with small answers for some seconds; any answer but success ends the benchmark."""
    url = f"http://{address}:{port}/healthz"
    output = run(["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", url])
    rate, p99 = re.search(r"Requests/sec:\s+([\d.]+)", output), re.search(r"99%\s+([\d.]+)(us|ms|s)", output)
    if not rate or not p99 or "Non-2xx" in output:
        sys.exit(f"{url} did not serve:\n{output}")
    return Throughput(float(rate[1]), float(p99[1]) * {"us": 0.001, "ms": 1, "s": 1000}[p99[2]])


def tasks(output: str) -> int:
    """Count the tasks of a run that reached its host: all but those of Ansible's own argument checks."""
    done = re.search(r"ok=(\d+)", output)
    return (
        (int(done[1]) if done else 0) - output.count("TASK [Validating arguments") - output.count("Validating arguments against")
    )


def run(command: list[str], text: str | None = None) -> str:
    """Run a program to its end and return what it printed; its failure ends the benchmark."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=ROOT, input=text, capture_output=True, text=True, check=False, env=environment, timeout=900
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that ``action`` takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios pair by pair: what slowed the machine slowed both of a pair."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def row(name: str, value: str, note: str) -> None:
    """Print a row of the table."""
    say(f"{name:32} {value:>18}   {note}".rstrip())


if __name__ == "__main__":
    main()
