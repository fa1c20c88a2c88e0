"""Duration of the playbooks for one and several hosts, and their tasks and round trips."""

from __future__ import annotations

import os
import re
import sys
from collections import defaultdict

from tests.bench.hosts import MAX_HOSTS, PLAIN, Fleet, Run
from tests.bench.table import Table, median, ratio, say

COUNTS = (1, 2, 4)
#: Includes the number of hosts that only some operations are measured with.
EVERY_COUNT = (*COUNTS, MAX_HOSTS)
#: The bare hosts of a round; each can be provisioned once.
BARE = {1: ["app1"], 2: ["app2", "app3"], 4: ["app4", "app5", "app6", "app7"]}
HOSTS = [f"app{number}" for number in range(1, MAX_HOSTS + 1)]

INSTALL = "bare host to serving"
VARIABLE = "one changed variable"
DEPLOY = "code-only deploy"
ROLLBACK = "rollback"
STATUS = "status"
UNCHANGED = "run without changes"
PLAYBOOKS = {
    INSTALL: "site.yml",
    UNCHANGED: "site.yml",
    VARIABLE: "site.yml",
    DEPLOY: "playbooks/deploy.yml",
    ROLLBACK: "playbooks/rollback.yml",
    STATUS: "playbooks/status.yml",
}
#: A round. A rollback requires a deploy before it; the last deploy makes all hosts equal, so that later runs have no changes.
ROUND = [
    *((name, count) for count in COUNTS for name in (VARIABLE, DEPLOY, ROLLBACK, STATUS)),
    (DEPLOY, MAX_HOSTS),
    *((UNCHANGED, count) for count in EVERY_COUNT),
]


class Operations:
    """Measured durations per operation and number of hosts, one per round."""

    def __init__(self, fleet: Fleet) -> None:
        """Start without measurements."""
        self.fleet = fleet
        self.seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.cpu: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.hosts_cpu: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.manual: list[float] = []
        self.costs: dict[str, Run] = {}

    def install(self, rounds: int) -> None:
        """Measure the provisioning of bare hosts, compared to the manual setup; the hosts of the last round serve afterwards."""
        for number in range(1, rounds + 1):
            say(f"bare hosts, round {number} of {rounds}")
            self.fleet.boot(PLAIN, *HOSTS)
            self.manual.append(self.fleet.install())
            say(f"  manual setup: {self.manual[-1]:.1f} s")
            for count, hosts in BARE.items():
                self.time(INSTALL, count, hosts)
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
        self.run(DEPLOY, HOSTS)
        self.costs[UNCHANGED] = self.run(UNCHANGED, HOSTS[:1], "-vvv")
        for number in range(1, rounds + 1):
            say(f"serving hosts, round {number} of {rounds}")
            for name, count in ROUND:
                self.time(name, count, HOSTS[:count])

    def time(self, name: str, count: int, hosts: list[str]) -> None:
        """Run and measure an operation."""
        done = self.run(name, hosts)
        self.seconds[name, count].append(done.seconds)
        self.cpu[name, count].append(done.cpu)
        self.hosts_cpu[name, count].append(done.hosts_cpu)
        say(f"  {name}, hosts {count}: {done.seconds:.1f} s; CPU {done.cpu:.1f} s, hosts {done.hosts_cpu:.1f} s")

    def run(self, name: str, hosts: list[str], *options: str) -> Run:
        """Run an operation with changes to apply, or without for `UNCHANGED`."""
        if name == VARIABLE:
            self.fleet.change_variable()
        if name == DEPLOY:
            self.fleet.change_code()
        if name == ROLLBACK:
            options = (*options, "-e", "app=bench")
        done = self.fleet.playbook(PLAYBOOKS[name], ":".join(hosts), *options)
        if name == UNCHANGED and (changed := re.findall(r"changed=[1-9].*", done.output)):
            sys.exit(f"a run without changes changed something: {changed}")
        return done

    def table(self) -> Table:
        """Return the medians; for several hosts also the median ratio to one host in the same round."""
        table = Table(
            "Duration of operations",
            "Seconds; for several hosts with the ratio to one host. CPU seconds of the controller and of the hosts are for\n"
            "one host and for the highest number of hosts. Controller and hosts share the CPUs, which are busy all the time:\n"
            "`separate` is the ratio without the CPU time of all hosts but one. Tasks that run on the host, and round trips\n"
            "to it, are for one host.",
            [
                "",
                *(f"{count} host{'s' * (count > 1)}" for count in EVERY_COUNT),
                "controller CPU",
                "hosts CPU",
                "separate",
                "tasks",
                "round trips",
            ],
        )
        for name in PLAYBOOKS:
            if not (single := self.seconds[name, 1]):
                continue
            cells = [f"{median(single):.1f}"]
            for count in EVERY_COUNT[1:]:
                found = self.seconds[name, count]
                cells.append(f"{median(found):.1f} ({ratio(found, single):.1f}x)" if found else "")
            most = next(count for count in reversed(EVERY_COUNT) if self.seconds[name, count])
            cells += [f"{median(cpu[name, 1]):.1f}, {median(cpu[name, most]):.1f}" for cpu in (self.cpu, self.hosts_cpu)]
            cells.append(f"{ratio(self.separate(name, most), single):.1f}x")
            cost = self.costs[name]
            table.rows.append([name, *cells, str(cost.tasks), str(cost.round_trips)])
        if self.manual:
            collection = self.seconds[INSTALL, 1]
            table.rows.append(["manual setup", f"{median(self.manual):.1f}", *[""] * (len(table.head) - 2)])
            table.rows.append(
                ["collection / manual setup", f"{ratio(collection, self.manual):.2f}x", *[""] * (len(table.head) - 2)]
            )
        return table

    def separate(self, name: str, count: int) -> list[float]:
        """Return the durations without the CPU time of all hosts but one on the shared CPUs."""
        cpus = len(os.sched_getaffinity(0))
        rounds = zip(self.seconds[name, count], self.hosts_cpu[name, count], self.hosts_cpu[name, 1], strict=True)
        return [seconds - (of_all - of_one) / cpus for seconds, of_all, of_one in rounds]
