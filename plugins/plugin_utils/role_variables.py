"""Variables of hosts that were meant to be a role's own, and are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import closest_match


def role_variable_problems(hosts: Mapping[str, Mapping[str, object]], options: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield each misspelt variable of a role, with what was meant, and with the hosts that have it if others do not.

    :arg hosts: the variables of each host. Only the values of those in question are looked at, of which some may raise KeyError.
    :arg options: the types of each role's variables by their names, as its argument specs have them.
    """
    having: dict[tuple[str, str, str], list[str]] = {}
    for host, variables in hosts.items():
        for name in variables:
            role = role_of(name, options)
            right = meant(name, role, options.get(role, ()))
            if right and _may_be(name, right, options[role][right], variables):
                having.setdefault((name, role, right), []).append(host)
    for (name, role, right), some in having.items():
        where = f" of {', '.join(some)}" if len(some) < len(hosts) else ""
        yield f"{name}{where}: no such variable of the role {role}; did you mean {right}?"


def role_of(name: str, roles: Collection[str]) -> str:
    """Return the role that a variable belongs to by its name; nothing if it is none's."""
    return next((role for role in roles if name.startswith(f"{role}_")), "")


def meant(name: str, role: str, known: Collection[str]) -> str | None:
    """Return the known variable of the role that ``name`` is a misspelling of.

    That is the nearest one, if at most a quarter of its letters is missing (not counting the role's name), and as many others are
    there. What only begins like a role's variable, such as ``python_version``, is somebody else's.
    """
    right = None if name in known else closest_match(name, known)
    if right is None:
        return None
    letters, wanted = Counter(name), Counter(right)
    tolerable = len(right.removeprefix(f"{role}_")) // 4
    return right if max((wanted - letters).total(), (letters - wanted).total()) <= tolerable else None


def _may_be(name: str, right: str, kind: str, variables: Mapping[str, object]) -> bool:
    """Say whether the value allows for it that ``right``, of that type, was meant.

    Of several and of one the value decides: ``app_version`` with a text is not meant as ``app_versions``, a dict.
    """
    if not (name.startswith(right) or right.startswith(name)):
        return True
    try:
        value = variables[name]
    except KeyError:  # it needs a variable that is not there yet
        return False
    return (kind == "dict") == isinstance(value, Mapping) and (kind == "list") == isinstance(value, list)
