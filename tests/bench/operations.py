"""Duration of the playbooks for one and several hosts, and their tasks and round trips."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Sequence

from tests.bench.hosts import MAX_HOSTS, PLAIN, Fleet, Run
from tests.bench.table import Table, median, ratio, say

HOSTS = [f"app{number}" for number in range(1, MAX_HOSTS + 1)]
#: The bare hosts of a round; each can be provisioned once.
BARE = (HOSTS[:1], HOSTS[1:5])
#: Apps of the host with many apps, and small hosts of the large fleet.
MANY_APPS = 20
MANY_HOSTS = 40
#: Runs of `site.yml` that the many apps and the many hosts are measured with.
MANY_ROUNDS = 3

INSTALL = "bare host to serving"
VARIABLE = "one changed variable"
DEPLOY = "code-only deploy"
ROLLBACK = "rollback"
STATUS = "status"
UNCHANGED = "run without changes"
PING = "ansible -m ping"
PLAYBOOKS = {
    INSTALL: "site.yml",
    UNCHANGED: "site.yml",
    VARIABLE: "site.yml",
    DEPLOY: "playbooks/deploy.yml",
    ROLLBACK: "playbooks/rollback.yml",
    STATUS: "playbooks/status.yml",
    PING: "",
}
#: A round. A rollback requires a deploy before it; the last deploy makes all hosts equal, so that later runs have no changes.
ROUND = [
    *((name, HOSTS[:1]) for name in (VARIABLE, DEPLOY, ROLLBACK)),
    (DEPLOY, HOSTS),
    *((name, hosts) for name in (UNCHANGED, STATUS, PING) for hosts in (HOSTS[:1], HOSTS)),
]


class Operations:
    """Measured runs per operation and number of hosts, one per round."""

    def __init__(self, fleet: Fleet) -> None:
        """Start without measurements."""
        self.fleet = fleet
        self.runs: dict[tuple[str, int], list[Run]] = defaultdict(list)
        self.manual: list[float] = []
        self.answers: list[float] = []
        self.healthy: list[float] = []
        self.costs: dict[str, Run] = {}
        self.many: list[Sequence[str]] = []

    def install(self, rounds: int) -> None:
        """Measure the provisioning of bare hosts, compared to the manual setup; the hosts of the last round serve afterwards."""
        for number in range(1, rounds + 1):
            say(f"bare hosts, round {number} of {rounds}")
            self.fleet.boot(PLAIN, *HOSTS)
            self.manual.append(self.fleet.install())
            say(f"  manual setup: {self.manual[-1]:.1f} s")
            for hosts in BARE:
                self.time(INSTALL, hosts)
        self.costs[INSTALL] = self.run(INSTALL, HOSTS[-1:], "-vvv")

    def prepare(self, hosts: list[str]) -> None:
        """Provision the hosts without measuring."""
        self.fleet.boot(PLAIN, *hosts)
        self.fleet.install()
        self.run(INSTALL, hosts)

    def operate(self, rounds: int) -> None:
        """Measure operations on serving hosts."""
        # Runs with -vvv, which count tasks and round trips, take longer and are not measured.
        self.costs |= {name: self.run(name, HOSTS[:1], "-vvv") for name in (VARIABLE, DEPLOY, ROLLBACK, STATUS)}
        self.run(INSTALL, HOSTS)
        self.run(DEPLOY, HOSTS)
        self.costs[UNCHANGED] = self.run(UNCHANGED, HOSTS[:1], "-vvv")
        for number in range(1, rounds + 1):
            say(f"serving hosts, round {number} of {rounds}")
            for name, hosts in ROUND:
                started = time.time()
                self.time(name, hosts)
                if (name, hosts) == (DEPLOY, HOSTS[:1]):
                    moved = float(self.fleet.ssh(HOSTS[0], "stat --format=%.Y /srv/bench/live"))
                    self.answers.append(moved - started)
                    self.healthy.append(time_to_health(self.runs[name, 1][-1].output))

    def time(self, name: str, hosts: list[str]) -> None:
        """Run and measure an operation."""
        done = self.run(name, hosts)
        self.runs[name, len(hosts)].append(done)
        say(f"  {name}, hosts {len(hosts)}: {done.seconds:.1f} s; CPU {done.cpu:.1f} s, hosts {done.hosts_cpu:.1f} s")

    def run(self, name: str, hosts: list[str], *options: str) -> Run:
        """Run an operation with changes to apply, or without for `UNCHANGED`."""
        limit = ":".join(hosts)
        if name == PING:
            return self.fleet.ansible(limit, "-m", "ansible.builtin.ping")
        if name == VARIABLE:
            self.fleet.change_variable()
        if name == DEPLOY:
            self.fleet.change_code()
        if name == ROLLBACK:
            options = (*options, "-e", "app=bench")
        done = self.fleet.playbook(PLAYBOOKS[name], limit, *options)
        if name == UNCHANGED and (changed := re.findall(r"changed=[1-9].*", done.output)):
            sys.exit(f"a run without changes changed something: {changed}")
        return done

    def many_apps(self) -> None:
        """Measure a run without changes on a host with many apps, in turn with one that has a single app."""
        one, many = [], []
        self.fleet.count = MANY_APPS
        self.fleet.change_variable()
        self.run(INSTALL, HOSTS[1:2])
        variables = self.fleet.variables.read_text()
        self.fleet.count = 1
        self.fleet.change_variable()
        self.run(INSTALL, HOSTS[:1])
        single = self.fleet.variables.read_text()
        for _ in range(MANY_ROUNDS):
            self.fleet.variables.write_text(single)
            one.append(self.run(UNCHANGED, HOSTS[:1]).seconds)
            self.fleet.variables.write_text(variables)
            many.append(self.run(UNCHANGED, HOSTS[1:2]).seconds)
            say(f"{MANY_APPS} apps, run without changes: {many[-1]:.1f} s; one app: {one[-1]:.1f} s")
        self.fleet.variables.write_text(single)
        self.many.append([f"{MANY_APPS} apps on one host", f"{median(many):.1f}", f"{ratio(many, one):.2f}x one app", ""])

    def many_hosts(self) -> None:
        """Measure a run without changes on many small hosts, clones of one."""
        clones = [f"small{number}" for number in range(1, MANY_HOSTS + 1)]
        self.run(INSTALL, HOSTS[-1:])
        self.fleet.clone(HOSTS[-1], clones)
        single = [self.run(UNCHANGED, clones[:1]) for _ in range(MANY_ROUNDS)]
        found = [self.run(UNCHANGED, clones) for _ in range(MANY_ROUNDS)]
        further = (median([run.cpu for run in found]) - median([run.cpu for run in single])) / (MANY_HOSTS - 1)
        seconds = median([run.seconds for run in found])
        say(f"{MANY_HOSTS} hosts, run without changes: {seconds:.1f} s, CPU {further:.2f} s for each further host")
        times = ratio([run.seconds for run in found], [run.seconds for run in single])
        self.many.append([f"{MANY_HOSTS} hosts", f"{seconds:.1f}", f"{times:.1f}x one host", f"{further:.2f}"])

    def table(self) -> Table:
        """Return the medians; for several hosts also the median ratio to one host in the same round."""
        table = Table(
            "Duration of operations",
            "Seconds, and the ratio to one host. CPU seconds are those of the controller. Controller and hosts share the CPUs,\n"
            "which are busy all the time: `separate` is the ratio without the CPU time of all hosts but one. Tasks that run on\n"
            "the host, round trips to it, and the data that it receives, downloads included, are for one host.",
            [
                "",
                "1 host",
                "/ ping",
                "CPU",
                "hosts",
                "seconds",
                "/ 1 host",
                "separate",
                "CPU per further host",
                "tasks",
                "round trips",
                "kB received",
            ],
        )
        for name in PLAYBOOKS:
            if single := self.runs[name, 1]:
                table.rows.append(self._row(name, single))
        if self.answers:
            cells = [f"{median(self.answers):.1f}", self._to_ping(self.answers)]
            table.rows.append(["  until the new release answers", *cells, *[""] * (len(table.head) - 3)])
            cells = [f"{median(self.healthy):.1f}", *[""] * (len(table.head) - 2)]
            table.rows.append(["  of that, from its start to healthy", *cells])
        if self.manual:
            collection = [run.seconds for run in self.runs[INSTALL, 1]]
            cells = [f"{median(self.manual):.1f}", *[""] * (len(table.head) - 2)]
            table.rows.append([f"manual setup (collection: {ratio(collection, self.manual):.2f}x)", *cells])
        return table

    def many_table(self) -> Table:
        """Return the measurements with many apps or hosts."""
        text = "Runs of `site.yml` without changes. CPU seconds of the controller; it shares the CPUs with all hosts."
        return Table("Many apps and hosts", text, ["", "seconds", "compared", "CPU per further host"], self.many)

    def _row(self, name: str, single: list[Run]) -> list[str]:
        cost = self.costs.get(name)
        cells = [f"{median([run.seconds for run in single]):.1f}", self._to_ping([run.seconds for run in single])]
        cells.append(f"{median([run.cpu for run in single]):.1f}")
        count = max(count for operation, count in self.runs if operation == name and self.runs[operation, count])
        if count > 1:
            several = self.runs[name, count]
            seconds = [run.seconds for run in several]
            cells += [str(count), f"{median(seconds):.1f}", f"{ratio(seconds, [run.seconds for run in single]):.1f}x"]
            cells.append(f"{ratio(separate(several, single), [run.seconds for run in single]):.1f}x")
            cells.append(f"{(median([run.cpu for run in several]) - median([run.cpu for run in single])) / (count - 1):.2f}")
        else:
            cells += [""] * 5
        costs = [str(cost.tasks), str(cost.round_trips)] if cost else ["", ""]
        return [name, *cells, *costs, f"{median([run.received for run in single]):.0f}"]

    def _to_ping(self, seconds: list[float]) -> str:
        pings = [run.seconds for run in self.runs[PING, 1]]
        return f"{ratio(seconds, pings):.1f}x" if len(seconds) == len(pings) else ""


def time_to_health(output: str) -> float:
    """Return the seconds from the start of the processes of a release until it is healthy, from the output of a deploy."""
    return sum(float(seconds) for seconds in re.findall(r"\b(?:start|health) ([\d.]+) s", output))


def separate(several: list[Run], single: list[Run]) -> list[float]:
    """Return the durations without the CPU time of all hosts but one on the shared CPUs."""
    cpus = len(os.sched_getaffinity(0))
    return [run.seconds - (run.hosts_cpu - one.hosts_cpu) / cpus for run, one in zip(several, single, strict=True)]
