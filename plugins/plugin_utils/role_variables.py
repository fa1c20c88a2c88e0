"""Detection of misspelled role variables in the inventory, which Ansible would ignore, and of strings that YAML misreads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import closest_match, yaml_type

#: Variables of type str that also accept a number.
_NUMERIC = frozenset({"nginx_worker_processes"})


def role_variable_problems(hosts: Mapping[str, Mapping[str, object]], options: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield each misspelled role variable with the likely name, and with its hosts unless all hosts have it.

    :arg hosts: the variables of each host; a value that cannot be evaluated raises KeyError.
    :arg options: the type of each variable by role and name, such as ``list of str``, from the argument specs.
    """
    affected: dict[tuple[str, str, str], list[str]] = {}
    for host, variables in hosts.items():
        for name in variables:
            role = role_of(name, options)
            likely = likely_variable(name, role, options.get(role, ()))
            if likely and _type_matches(name, likely, options[role][likely], variables):
                affected.setdefault((name, role, likely), []).append(host)
    for (name, role, likely), its_hosts in affected.items():
        yield f"{name}{_where(its_hosts, hosts)}: no such variable of the role {role}; did you mean {likely}?"


def yaml_type_problems(hosts: Mapping[str, Mapping[str, object]], options: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield each string that YAML reads as another type, which Ansible would convert silently: ``12:30`` to ``750``.

    Numbers are valid in lists, such as ports. Values are not shown, as some are passwords. The arguments are those of
    `role_variable_problems`.
    """
    kinds = {name: kind for variables in options.values() for name, kind in variables.items() if kind.endswith("str")}
    affected: dict[tuple[str, str], list[str]] = {}
    for host, variables in hosts.items():
        for name in kinds.keys() & variables:
            if found := _misread(kinds[name], name, variables):
                affected.setdefault((name, found), []).append(host)
    for (name, found), its_hosts in sorted(affected.items()):
        yield f"{name}{_where(its_hosts, hosts)}: must be a string, but YAML reads it as {found}; put it in quotes"


def _misread(kind: str, name: str, variables: Mapping[str, object]) -> str:
    """Return the type as which YAML has read a string or an item of a list; empty if it is valid or cannot be evaluated."""
    try:
        value = variables[name]
    except KeyError:
        return ""
    numeric = name in _NUMERIC or kind != "str"
    items = value if isinstance(value, list) and kind != "str" else [value]
    return next((found for item in items if (found := yaml_type(item)) and not (numeric and _is_integer(item))), "")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _where(affected: Collection[str], hosts: Collection[str]) -> str:
    """Return the names of the affected hosts for a message, unless all are."""
    return f" of {', '.join(affected)}" if len(affected) < len(hosts) else ""


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
    return (kind == "dict") == isinstance(value, Mapping) and kind.startswith("list") == isinstance(value, list)
