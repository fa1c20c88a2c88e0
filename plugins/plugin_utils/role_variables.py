"""Detection of misspelled role variables in the inventory, which Ansible would ignore."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import closest_match


def role_variable_problems(hosts: Mapping[str, Mapping[str, object]], options: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield each misspelled role variable with the likely name, and with its hosts unless all hosts have it.

    :arg hosts: the variables of each host; a value that cannot be evaluated raises KeyError.
    :arg options: the type of each variable by role and name, from the argument specs.
    """
    affected: dict[tuple[str, str, str], list[str]] = {}
    for host, variables in hosts.items():
        for name in variables:
            role = role_of(name, options)
            likely = likely_variable(name, role, options.get(role, ()))
            if likely and _type_matches(name, likely, options[role][likely], variables):
                affected.setdefault((name, role, likely), []).append(host)
    for (name, role, likely), its_hosts in affected.items():
        where = f" of {', '.join(its_hosts)}" if len(its_hosts) < len(hosts) else ""
        yield f"{name}{where}: no such variable of the role {role}; did you mean {likely}?"


def role_of(name: str, roles: Collection[str]) -> str:
    """Return the role whose prefix a variable has; empty if there is none."""
    return next((role for role in roles if name.startswith(f"{role}_")), "")


def likely_variable(name: str, role: str, variables: Collection[str]) -> str | None:
    """Return the variable of the role that ``name`` is a likely misspelling of.

    At most a quarter of its letters, not counting the prefix, may be missing, and as many may be added. So names that only share
    the prefix, such as ``python_version``, remain free for the user.
    """
    likely = None if name in variables else closest_match(name, variables)
    if likely is None:
        return None
    letters, expected = Counter(name), Counter(likely)
    tolerance = len(likely.removeprefix(f"{role}_")) // 4
    return likely if max((expected - letters).total(), (letters - expected).total()) <= tolerance else None


def _type_matches(name: str, likely: str, kind: str, variables: Mapping[str, object]) -> bool:
    """Return whether the value fits the type of ``likely``, where one name is a prefix of the other.

    So ``app_version`` with a string is not taken for ``app_versions``, which is a dict.
    """
    if not (name.startswith(likely) or likely.startswith(name)):
        return True
    try:
        value = variables[name]
    except KeyError:
        return False
    return (kind == "dict") == isinstance(value, Mapping) and (kind == "list") == isinstance(value, list)
