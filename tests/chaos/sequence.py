"""A seeded sequence of steps on one host: an operation each, often with a fault, and the checks after it."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from random import Random

from tests.chaos import checks
from tests.chaos.checks import ViolationError
from tests.chaos.clients import Clients
from tests.chaos.faults import FAULTS, Fault, heal_network
from tests.chaos.host import Command, Host, finish, now
from tests.chaos.operations import MAIN, OTHER, REMOVE, Operation, Operator

#: Connections of the clients of the main app, and of the other.
CONNECTIONS = {True: 24, False: 4}

#: Maximum seconds between the start of an operation and its fault or second command.
MAX_DELAY = 7.0

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

    def __init__(self, host: Host, seed: int) -> None:
        """Start without steps; provision the host with `begin`."""
        self.host, self.seed = host, seed
        self.operator = Operator(host.directory, int(now()))  # the host may have releases of an earlier sequence
        self.clients: dict[str, Clients] = {}
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
        """Provision the host, and start the clients."""
        operation = self.operator.first()
        self.expect(operation.command)
        operation.on_success()
        if OTHER in self.host.run("ls", "/srv").split():  # of an earlier sequence
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
        name = random.choices(["", *FAULTS], [14, *(fault.weight for fault in FAULTS.values())])[0]
        fault = FAULTS.get(name)
        if fault and (operation.second or (fault.first and operation.command.playbook == REMOVE)):
            fault, name = None, ""
        self.note(f"step {number}: {operation.name}{f', {name}' if name else ''}")
        self.counts["steps"] += 1
        before = {app.name: app.live for app in self.operator.apps.values()}
        for removed in [app for app, mark in operation.outcome.items() if not mark]:
            self.retire(self.clients.pop(removed))
        if operation.first:
            self.expect(operation.first.command)
        windows = self.perform(operation, fault, random)
        operation.on_success()
        self.follow_apps()
        self.check(operation, before, windows, fault)

    def choose(self, random: Random) -> Operation:
        """Draw an operation; a rollback needs a target in the history of the host."""
        operation = self.operator.draw(random)
        if operation.name != "rollback":
            return operation
        entries, built = self.host.python(READ_HISTORY)
        newest = {entry["release"]: entry for entry in entries}
        order = list(dict.fromkeys(entry["release"] for entry in reversed(entries)))
        live = self.operator.apps[MAIN].live
        for release in order:
            mark = self.releases.get(release, "")
            if mark == live or newest[release]["undone"]:
                continue
            if mark not in self.operator.apps[MAIN].entries or release not in built:
                break
            return self.operator.roll_back_to(operation, mark, release)
        return self.operator.deploy_code(random)

    def perform(self, operation: Operation, fault: Fault | None, random: Random) -> list[tuple[float, float]]:
        """Run an operation with a fault until its outcome is reached; return when requests may have failed."""
        began, delay = now(), random.uniform(0, MAX_DELAY)
        if fault is None and operation.second is None:
            self.expect(operation.command, fails=operation.fails)
            return []
        if fault and fault.first:
            fault.inject(self.host, [], random)
        runs = [self.host.start(operation.command)]
        try:
            if operation.second:
                self.wait_for_step(operation.at, delay)
                runs.append(self.host.start(operation.second))
            elif fault and not fault.first:
                time.sleep(delay)
                began = now()
                fault.inject(self.host, runs, random)
                time.sleep(0 if fault.ends else random.uniform(1, 6))
            if fault and not fault.first:
                fault.heal(self.host)
            finished = [finish(run) for run in runs]
        finally:
            if fault and fault.first:
                fault.heal(self.host)
        self.output = "\n".join(output for _, output in finished)
        self.note(f"  exit status {', '.join(str(status) for status, _ in finished)} after {now() - began:.1f} s")
        if operation.preempts and finished[1][0] != 0:
            raise ViolationError(f"{operation.second} exits with {finished[1][0]}")
        if operation.at and finished[0][0] == 0:
            raise ViolationError(f"{operation.command} was not preempted during {operation.at}")
        if not checks.wait_for(lambda: checks.answers(self.host, self.operator.apps[MAIN].domains[0]), checks.RECOVERY):
            raise ViolationError(f"the site does not answer {checks.RECOVERY:g} s after the fault")
        windows = [] if fault is None or fault.quiet else [(began, now())]
        self.expect(operation.again or operation.command, fails=operation.fails)
        return windows

    def wait_for_step(self, step: str, delay: float) -> None:
        """Wait until a deploy is at a step, or for a delay without one."""
        if not step:
            time.sleep(delay)
            return
        self.host.run("timeout", "60", "sh", "-c", f"until grep -q {step} /srv/{MAIN}/.lock; do sleep 0.05; done", seconds=70)

    def expect(self, command: Command, *, fails: bool = False) -> None:
        """Run a command. Raises `ViolationError` if it succeeds or fails unexpectedly."""
        began = now()
        status, self.output = finish(self.host.start(command))
        self.note(f"  {command}: exit status {status} after {now() - began:.1f} s")
        if (status != 0) != fails:
            raise ViolationError(f"{command} exits with {status}")

    def follow_apps(self) -> None:
        """Start the clients of apps that are new."""
        for app in self.operator.apps.values():
            if app.live and app.name not in self.clients:
                self.clients[app.name] = Clients(self.host.address, app.domains[0], CONNECTIONS[app.name == MAIN])

    def retire(self, clients: Clients) -> None:
        """Stop clients and count their requests."""
        result = clients.stop()
        self.counts["requests"] += result.requests
        self.counts["POSTs"] += result.posted

    def check(
        self, operation: Operation, before: dict[str, str], windows: list[tuple[float, float]], fault: Fault | None
    ) -> None:
        """Check everything after a step. Raises `ViolationError`."""
        problems: list[str] = []
        host, apps = self.host, self.operator.apps
        reloads = operation.reloads or bool(fault)
        for name, mark in {app.name: app.live for app in apps.values() if app.live}.items():
            clients = self.clients[name]
            problems += checks.serving(host, name, apps[name].domains, mark)
            problems += checks.stored(host, name, clients)
            failures = checks.classify(clients, windows, reloads=reloads)
            self.counts.update({f"failed: {kind}": len(reasons) for kind, reasons in failures.items()})
            problems += [f"{name}: {reason}" for reason in failures["violation"][:5]]
            cut = clients.new_cuts()
            problems += [f"{name}: {cut} websockets broke"] * (cut > 0 and not windows)
            problems += [f"{name}: the clients failed: {clients.error!r}"] * (clients.error is not None)
            expected = {before[name], mark, *operation.may_answer}
            seen = list(clients.answered.items())
            clients.answered.clear()
            problems += [
                f"{name}: {found} answered, which never became healthy" for (found, _), _ in seen if found not in expected
            ]
            self.releases |= {release: found for (found, release), _ in seen if name == MAIN}
        deployed = [app.name for app in apps.values() if app.live]
        problems += [
            f"left behind: {path}" for path in checks.leftovers(host, deployed, [name for name in apps if name not in deployed])
        ]
        if problems:
            raise ViolationError("\n".join(problems))

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
            heal_network(self.host)
            self.end()
        return True


def summary(counts: Counter[str]) -> str:
    """Return the counts on one line."""
    return json.dumps(dict(sorted(counts.items()))).strip("{}").replace('"', "")
