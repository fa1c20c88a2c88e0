"""A seeded sequence of steps on the hosts: an operation each, often with a fault on one host, and the checks after it."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from random import Random

from tests.chaos import checks
from tests.chaos.checks import ViolationError
from tests.chaos.clients import Clients
from tests.chaos.faults import FAULTS, Fault, heal_network, weights
from tests.chaos.host import PROVISIONING, TIMEOUT, Command, Controller, Entrance, Host, finish, now
from tests.chaos.operations import MAIN, OTHER, REMOVE, Operation, Operator, site_answer

#: Connections of the clients of the main app, and of the other.
CONNECTIONS = {True: 24, False: 4}

#: Maximum seconds between the start of an operation and its fault or second command.
MAX_DELAY = 7.0

#: When requests of a host may fail: the host, begin and end.
Window = tuple[Host, float, float]

#: Returns the history, and the releases that are built.
READ_HISTORY = """
import json, pathlib
home = pathlib.Path("/srv/sample")
print(json.dumps([json.loads((home / "history.json").read_text()), sorted(path.name for path in (home / "releases").iterdir())]))
"""


class Sequence:
    """Runs steps and keeps their history.

    Each step draws from a random generator of its own, which the seed and its number determine: a sequence can be replayed, and
    steps can be deleted from it without changing how the others are drawn.
    """

    def __init__(self, controller: Controller, seed: int) -> None:
        """Start without steps; provision the hosts with `begin`."""
        self.controller, self.hosts, self.balancers, self.seed = controller, controller.hosts, controller.balancers, seed
        # The hosts may have releases of an earlier sequence.
        self.operator = Operator(controller.directory, int(now()), len(self.hosts))
        self.windows: list[Window] = []
        self.clients: dict[tuple[str, str], Clients] = {}
        self.history: list[str] = []
        self.counts: Counter[str] = Counter()
        self.releases: dict[str, str] = {}
        self.output = ""

    def note(self, text: str) -> None:
        """Add a line to the history and print it."""
        line = f"{time.strftime('%H:%M:%S')} {text}"
        self.history.append(line)
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def begin(self) -> None:
        """Provision the hosts, and start the clients."""
        operation = self.operator.first()
        self.expect(operation.command, seconds=PROVISIONING)
        operation.on_success()
        if any(OTHER in host.run("ls", "/srv").split() for host in self.hosts):  # of an earlier sequence
            self.expect(Command(REMOVE, self.operator.desired(), {"app": OTHER}))
        self.follow_apps()

    def end(self) -> None:
        """Stop the clients."""
        for clients in self.clients.values():
            self.retire(clients)
        self.clients.clear()

    def step(self, number: int) -> None:
        """Run a step. Raises `ViolationError`."""
        random = Random(f"{self.seed}.{number}")
        operation = self.choose(random)
        faults = weights(balancers=self.balancers != [])
        name = random.choices(["", *faults], [14, *faults.values()])[0]
        fault = FAULTS.get(name)
        if fault and (operation.second or (fault.first and operation.command.playbook == REMOVE)):
            fault, name = None, ""
        victim = random.choice(self.balancers if fault and fault.at_balancer else self.hosts)
        self.note(f"step {number}: {operation.name}{f', {name} ({victim.name})' if name else ''}")
        self.counts["steps"] += 1
        before = {app.name: app.live for app in self.operator.apps.values()}
        for removed in [key for key in self.clients if operation.outcome.get(key[0]) == ""]:
            self.retire(self.clients.pop(removed))
        if operation.first:
            self.expect(operation.first.command, fails=operation.first.fails)
        faulty = self.perform(operation, fault, victim, random)
        self.windows += faulty
        operation.on_success()
        self.follow_apps()
        self.check(operation, before, fault, cut=faulty != [])

    def choose(self, random: Random) -> Operation:
        """Draw an operation; a rollback needs a target in the history of the host."""
        operation = self.operator.draw(random)
        if operation.name != "rollback":
            return operation
        found = [host.python(READ_HISTORY) for host in self.hosts]
        newest = [{entry["release"]: entry for entry in entries} for entries, _built in found]
        merged = sorted(
            (entry for entries in newest for entry in entries.values()), key=lambda entry: str(entry["at"]), reverse=True
        )
        undone = {entry["release"] for entry in merged if entry["undone"]}
        live = self.operator.apps[MAIN].live
        for release in dict.fromkeys(entry["release"] for entry in merged):
            mark = self.releases.get(release, "")
            if mark == live or release in undone:
                continue
            if mark not in self.operator.apps[MAIN].entries or not all(release in built for _entries, built in found):
                break
            return self.operator.roll_back_to(operation, mark, release)
        return self.operator.deploy_code(random)

    def perform(self, operation: Operation, fault: Fault | None, victim: Host, random: Random) -> list[Window]:
        """Run an operation with a fault of a host until its outcome is reached; return when requests may have failed."""
        began, delay = now(), random.uniform(0, MAX_DELAY)
        if fault is None and operation.second is None:
            self.expect(operation.command, fails=operation.fails)
            return []
        if fault and fault.first:
            fault.inject(victim, [], random)
        runs = [self.controller.start(operation.command)]
        try:
            if operation.second:
                self.wait_for_step(operation.at, delay)
                runs.append(self.controller.start(operation.second))
            elif fault and not fault.first:
                time.sleep(delay)
                began = now()
                fault.inject(victim, runs, random)
                time.sleep(0 if fault.ends else random.uniform(1, 6))
            if fault and not fault.first:
                fault.heal(victim)
            finished = [finish(run) for run in runs]
        finally:
            if fault and fault.first:
                fault.heal(victim)
        self.output = "\n".join(output for _, output in finished)
        self.note(f"  exit status {', '.join(str(status) for status, _ in finished)} after {now() - began:.1f} s")
        if operation.preempts and finished[1][0] != 0:
            raise ViolationError(f"{operation.second} exits with {finished[1][0]}")
        if operation.at and finished[0][0] == 0:
            raise ViolationError(f"{operation.command} was not preempted during {operation.at}")
        addresses = self.controller.addresses
        if not checks.wait_for(lambda: checks.answers(addresses, self.operator.apps[MAIN].domains[0]), checks.RECOVERY):
            raise ViolationError(f"{victim.name}: the site does not answer {checks.RECOVERY:g} s after the fault")
        windows = [] if fault is None or fault.quiet else [(victim, began, now())]
        self.expect(operation.again or operation.command, fails=operation.fails)
        return windows

    def wait_for_step(self, step: str, delay: float) -> None:
        """Wait until a deploy is at a step, or for a delay without one."""
        if not step:
            time.sleep(delay)
            return
        self.hosts[0].run("timeout", "60", "sh", "-c", f"until grep -q {step} /srv/{MAIN}/.lock; do sleep 0.05; done", seconds=70)

    def expect(self, command: Command, *, fails: bool = False, seconds: float = TIMEOUT) -> None:
        """Run a command. Raises `ViolationError` if it succeeds or fails unexpectedly."""
        began = now()
        status, self.output = finish(self.controller.start(command), seconds)
        self.note(f"  {command}: exit status {status} after {now() - began:.1f} s")
        if (status != 0) != fails:
            raise ViolationError(f"{command} exits with {status}")

    def follow_apps(self) -> None:
        """Start the clients of apps that are new."""
        for app, entrance in itertools.product(self.operator.apps.values(), self.controller.entrances):
            if app.live and (app.name, entrance.name) not in self.clients:
                clients = Clients(entrance.address, app.domains[0], CONNECTIONS[app.name == MAIN])
                self.clients[app.name, entrance.name] = clients

    def retire(self, clients: Clients) -> None:
        """Stop clients and count their requests."""
        result = clients.stop()
        self.counts["requests"] += result.requests
        self.counts["POSTs"] += result.posted

    def check(self, operation: Operation, before: dict[str, str], fault: Fault | None, *, cut: bool) -> None:
        """Check everything after a step, whose fault may have ``cut`` connections. Raises `ViolationError`."""
        apps = self.operator.apps
        deployed = [app.name for app in apps.values() if app.live]
        removed = [name for name in apps if name not in deployed]
        problems: list[str] = []
        addresses = self.controller.addresses
        for address, name in itertools.product(addresses, deployed):
            problems += checks.serving(address, name, apps[name].domains, apps[name].live)
            problems += checks.site_options(address, name, apps[name].domains[0], site_answer(apps[name].entry))
        for entrance, name in itertools.product(self.controller.entrances, deployed):
            problems += checks.stored(entrance, name, self.clients[name, entrance.name])
            reported = self.check_clients(entrance, name, reloads=operation.reloads or bool(fault), cut=cut)
            problems += [f"{entrance.name}: {name}: {problem}" for problem in reported]
            problems += self.check_answers(entrance, name, {before[name], apps[name].live, *operation.may_answer})
        for host in self.hosts:
            problems += checks.leftovers(host, deployed, removed)
        for host in self.balancers:
            problems += checks.leftovers(host, [], [])
        if problems:
            raise ViolationError("\n".join(problems))

    def check_clients(self, entrance: Entrance, app: str, *, reloads: bool, cut: bool) -> list[str]:
        """Return the failures that the clients of an app noticed at an entrance."""
        clients = self.clients[app, entrance.name]
        passed = [*entrance.hosts, *entrance.balancers]
        windows = [(begin, end) for victim, begin, end in self.windows if victim in passed]
        failures = checks.classify(clients, windows, reloads=reloads)
        self.counts.update({f"failed: {kind}": len(reasons) for kind, reasons in failures.items()})
        broken = clients.new_cuts()
        problems = failures["violation"][:5] + [f"{broken} websockets broke"] * (broken > 0 and not cut)
        return problems + [f"the clients failed: {clients.error!r}"] * (clients.error is not None)

    def check_answers(self, entrance: Entrance, app: str, expected: set[str]) -> list[str]:
        """Return the releases of an app that answered at an entrance, although they never became healthy or live."""
        clients = self.clients[app, entrance.name]
        seen = list(clients.answered)
        clients.answered.clear()
        if app == MAIN:
            self.releases |= {release: mark for mark, release in seen}
        return [
            f"{entrance.name}: {app}: {mark} answered, which never became healthy" for mark, _ in seen if mark not in expected
        ]

    def run(self, numbers: Iterable[int], minutes: float) -> bool:
        """Run steps for some minutes; return whether all checks held."""
        deadline = time.monotonic() + 60 * minutes
        try:
            self.begin()
            for number in numbers:
                if time.monotonic() > deadline:
                    break
                self.step(number)
        except (ViolationError, OSError) as error:
            self.note(f"violation: {error}")
            return False
        finally:
            for host in (*self.hosts, *self.balancers):
                heal_network(host)
            self.end()
        return True


def summary(counts: Counter[str]) -> str:
    """Return the counts on one line."""
    return json.dumps(dict(sorted(counts.items()))).strip("{}").replace('"', "")
