"""How long an operator waits: each playbook for one host and for several, and what it costs in tasks and round trips."""

from __future__ import annotations

import os
import re
import sys
from collections import defaultdict

from tests.bench.hosts import MOST, PLAIN, Fleet, Run
from tests.bench.table import Table, median, ratio, say

COUNTS = (1, 2, 4)
#: With the number that only some operations are timed for.
EVERY_COUNT = (*COUNTS, MOST)
#: The bare hosts of a round: each can be provisioned once.
BARE = {1: ["app1"], 2: ["app2", "app3"], 4: ["app4", "app5", "app6", "app7"]}
HOSTS = [f"app{number}" for number in range(1, MOST + 1)]

INSTALL = "bare host to serving"
VARIABLE = "one changed variable"
DEPLOY = "code-only deploy"
ROLLBACK = "rollback"
STATUS = "status"
AGAIN = "run without changes"
PLAYBOOKS = {
    INSTALL: "site.yml",
    AGAIN: "site.yml",
    VARIABLE: "site.yml",
    DEPLOY: "playbooks/deploy.yml",
    ROLLBACK: "playbooks/rollback.yml",
    STATUS: "playbooks/status.yml",
}
#: A round. A rollback needs the deploy before it; the last deploy leaves all hosts with the same, or runs would have changes.
ROUND = [
    *((name, count) for count in COUNTS for name in (VARIABLE, DEPLOY, ROLLBACK, STATUS)),
    (DEPLOY, MOST),
    *((AGAIN, count) for count in EVERY_COUNT),
]


class Operations:
    """What was timed: seconds by the operation and its number of hosts, one for each round."""

    def __init__(self, fleet: Fleet) -> None:
        """Nothing has been timed yet."""
        self.fleet = fleet
        self.seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.cpu: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.hosts_cpu: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.plain: list[float] = []
        self.costs: dict[str, Run] = {}

    def install(self, rounds: int) -> None:
        """Time the way from bare hosts to serving, next to the plain way; the last round's hosts serve all afterwards."""
        for number in range(1, rounds + 1):
            say(f"bare hosts, round {number} of {rounds}")
            self.fleet.boot(PLAIN, *HOSTS)
            self.plain.append(self.fleet.install())
            say(f"  the plain way: {self.plain[-1]:.1f} s")
            for count, hosts in BARE.items():
                self.time(INSTALL, count, hosts)
        self.costs[INSTALL] = self.run(INSTALL, HOSTS[-1:], "-vvv")

    def prepare(self) -> None:
        """Have all hosts serve, in whatever time that takes."""
        self.fleet.boot(PLAIN, *HOSTS)
        self.fleet.install()
        self.run(INSTALL, HOSTS)

    def operate(self, rounds: int) -> None:
        """Time what is done to hosts that serve."""
        # A run that tells its tasks and round trips takes longer for it: it is not timed.
        self.costs |= {name: self.run(name, HOSTS[:1], "-vvv") for name in (VARIABLE, DEPLOY, ROLLBACK, STATUS)}
        self.run(DEPLOY, HOSTS)
        self.costs[AGAIN] = self.run(AGAIN, HOSTS[:1], "-vvv")
        for number in range(1, rounds + 1):
            say(f"hosts that serve, round {number} of {rounds}")
            for name, count in ROUND:
                self.time(name, count, HOSTS[:count])

    def time(self, name: str, count: int, hosts: list[str]) -> None:
        """Run and time an operation."""
        done = self.run(name, hosts)
        self.seconds[name, count].append(done.seconds)
        self.cpu[name, count].append(done.cpu)
        self.hosts_cpu[name, count].append(done.hosts_cpu)
        say(f"  {name}, hosts {count}: {done.seconds:.1f} s; CPU {done.cpu:.1f} s, of the hosts {done.hosts_cpu:.1f} s")

    def run(self, name: str, hosts: list[str], *options: str) -> Run:
        """Run an operation that has something to do, or if it is `AGAIN`, has not."""
        if name == VARIABLE:
            self.fleet.change_variable()
        if name == DEPLOY:
            self.fleet.change_code()
        if name == ROLLBACK:
            options = (*options, "-e", "app=bench")
        done = self.fleet.playbook(PLAYBOOKS[name], ":".join(hosts), *options)
        if name == AGAIN and (changed := re.findall(r"changed=[1-9].*", done.output)):
            sys.exit(f"a run without changes changed something: {changed}")
        return done

    def table(self) -> Table:
        """Return the medians; those of several hosts with the median of the ratios to one host in the same round."""
        table = Table(
            "An operator's time",
            "Seconds; behind those for several hosts, how many times those for one. Next come the seconds of CPU of the\n"
            "controller itself, and of the hosts, for one and for the most that there were. Hosts and controller share\n"
            "CPUs here, and these are busy all the time: `elsewhere` is that ratio, reckoned without what all hosts but\n"
            "one took of them. A task counts if it touches the host, and a round trip is what is sent to it and waited\n"
            "for; both for one host.",
            [
                "",
                *(f"{count} host{'s' * (count > 1)}" for count in EVERY_COUNT),
                "controller's CPU",
                "hosts' CPU",
                "elsewhere",
                "tasks",
                "round trips",
            ],
        )
        for name in PLAYBOOKS:
            if not (one := self.seconds[name, 1]):
                continue
            cells = [f"{median(one):.1f}"]
            for count in EVERY_COUNT[1:]:
                found = self.seconds[name, count]
                cells.append(f"{median(found):.1f} ({ratio(found, one):.1f}x)" if found else "")
            most = next(count for count in reversed(EVERY_COUNT) if self.seconds[name, count])
            cells += [f"{median(cpu[name, 1]):.1f}, {median(cpu[name, most]):.1f}" for cpu in (self.cpu, self.hosts_cpu)]
            cells.append(f"{ratio(self.elsewhere(name, most), one):.1f}x")
            cost = self.costs[name]
            table.rows.append([name, *cells, str(cost.tasks), str(cost.round_trips)])
        if self.plain:
            ours = self.seconds[INSTALL, 1]
            table.rows.append(["the plain way to serving", f"{median(self.plain):.1f}", *[""] * (len(table.head) - 2)])
            table.rows.append(
                ["the collection's / the plain way", f"{ratio(ours, self.plain):.2f}x", *[""] * (len(table.head) - 2)]
            )
        return table

    def elsewhere(self, name: str, count: int) -> list[float]:
        """Return the seconds without those of the CPUs, which all share, that the hosts but one took."""
        cpus = len(os.sched_getaffinity(0))
        rounds = zip(self.seconds[name, count], self.hosts_cpu[name, count], self.hosts_cpu[name, 1], strict=True)
        return [seconds - (of_all - of_one) / cpus for seconds, of_all, of_one in rounds]
