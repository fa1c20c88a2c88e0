"""The apps that an operator names with -e app=."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import closest_match


@dataclass(frozen=True)
class Selection:
    """The named apps, or the problem with their names."""

    names: list[str] = field(default_factory=list)
    problem: str = ""


def select(named: object, apps: Iterable[str], *, default: Iterable[str] = (), single: bool = False) -> Selection:
    """Return the apps that ``named`` lists, separated by commas; without any, ``default`` or, if that is empty, the only app.

    :arg apps: the apps that there are, in the inventory or on the hosts.
    :arg single: whether exactly one app must be named.
    """
    known = list(dict.fromkeys(apps))
    names = list(dict.fromkeys(name for word in str(named or "").split(",") if (name := word.strip())))
    if problems := unknown_apps(names, known):
        return Selection(problem="\n".join(problems))
    names = names or list(default) or (known if len(known) == 1 else [])
    if not names:
        return Selection(problem=f"app: name {'the app' if single else 'apps'} with -e app=NAME; {_choices(known)}")
    if single and len(names) > 1:
        return Selection(problem=f"app: must name a single app for this playbook; found {', '.join(names)}")
    return Selection(names)


def unknown_apps(names: Iterable[str], apps: Iterable[str]) -> list[str]:
    """Return a message for each of ``names`` that is not one of ``apps``."""
    known = list(apps)
    problems = []
    for name in names:
        if name not in known:
            match = closest_match(name, known)
            hint = f"did you mean {match}?" if match else _choices(known)
            problems.append(f"{VARIABLE}: no such app {name}; {hint}")
    return problems


def _choices(apps: list[str]) -> str:
    return f"there are {', '.join(apps)}" if apps else "there is none"
