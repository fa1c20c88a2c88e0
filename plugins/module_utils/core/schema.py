"""Validation of plain data against schemas, which are frozen dataclasses; all problems are reported at once.

The annotations of a schema's fields are checked, and ``Annotated`` adds further rules::

    @dataclass(frozen=True, kw_only=True)
    class Health:
        path: Annotated[str, Doc("Path of the health check."), Pattern(r"/.*", "a path that starts with /")] = "/"
        timeout: Annotated[int, Doc("Timeout in seconds."), Range(1, 600)] = 30

Supported types are ``str``, ``int``, ``bool``, ``Literal``, ``list[X]``, ``dict[str, X]``, other schemas and unions of them. A
schema may inherit from another one; inherited keys are listed last.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import functools
import inspect
import ipaddress
import re
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

#: Maximum length of a value that a message quotes.
QUOTED_LENGTH = 60


@dataclass(frozen=True)
class Doc:
    """Description of a key: one or two sentences in the markup of the documentation."""

    text: str


@dataclass(frozen=True)
class Range:
    """Inclusive range of an integer."""

    low: int
    high: int

    def violation(self, value: object) -> str | None:
        """Return the requirement that ``value`` violates, if any."""
        if isinstance(value, int) and not self.low <= value <= self.high:
            return f"must be from {self.low} to {self.high}"
        return None


@dataclass(frozen=True)
class Pattern:
    """Regular expression that a string, or each string of a list, must match in full; ``expected`` describes it."""

    regex: str
    expected: str

    def violation(self, value: object) -> str | None:
        """Return the requirement that ``value`` violates, if any."""
        if isinstance(value, str) and not re.fullmatch(self.regex, value):
            return f"must be {self.expected}"
        return None


@dataclass(frozen=True)
class Network:
    """IP address or network in the notation of nginx: without a zone, and with a prefix length instead of a netmask."""

    expected: ClassVar = 'an IP address or a network, such as "192.0.2.7", "10.0.0.0/8" or "2001:db8::/32"'

    def violation(self, value: object) -> str | None:
        """Return the requirement that ``value`` violates, if any."""
        try:
            ipaddress.ip_network(str(value))
        except ValueError:
            return f"must be {self.expected}"
        return None if re.fullmatch(r"[^/%]+(/[0-9]{1,3})?", str(value)) else f"must be {self.expected}"


#: Hostname, or wildcard name with a leading "*.", RFC 1123.
DOMAIN = Pattern(
    r"(?=.{1,253}$)(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
    "a domain name in lower case",
)


class Hidden:
    """Marks a key whose value must not appear in messages."""


class InvalidDataError(ValueError):
    """Data violates its schema. The message contains all ``problems``, one per line."""

    def __init__(self, problems: list[str], partial: object = None) -> None:
        """Store ``problems``, each formatted as ``path: requirement; found value``.

        :arg partial: an instance of the schema with the valid keys, whose other keys raise `InvalidKeyError` when they are read;
            or a dict of the valid instances.
        """
        super().__init__("\n".join(problems))
        self.problems = problems
        self.partial = partial


class InvalidKeyError(Exception):
    """A key was read whose value violates its schema; the violation is reported already."""


@dataclass(frozen=True)
class Key:
    """A key of a schema, for documentation."""

    path: str
    type: str
    default: Any
    required: bool
    bounds: str
    text: str


#: What YAML can read a word as that is not in quotes.
_SCALARS = (bool, int, float, datetime.date)

#: Takes the place of a value that violates its schema.
_INVALID = object()


def parse(schema: type[T], data: object, path: str, **internal: object) -> T:
    """Return ``data`` as an instance of ``schema``.

    :arg path: path of the data, such as ``tornado_apps.shop``, with which each problem starts.
    :arg internal: values of fields that data cannot set.
    :raises InvalidDataError: with all problems, and the valid keys.
    """
    problems: list[str] = []
    result = _Parser(problems, internal).value(schema, data, path)
    if problems:
        raise InvalidDataError(problems, None if result is _INVALID else result)
    return result  # type: ignore[no-any-return]  # the type depends on `schema`


def parse_each(
    schema: type[T], entries: Mapping[str, object], path: str, problems: list[str], name: Pattern | None = None
) -> dict[str, T]:
    """Return the valid ones of ``entries`` as instances of ``schema``; add the problems of the others to ``problems``.

    :arg path: path of the entries, such as ``tornado_apps``.
    :arg name: pattern of their names.
    """
    parsed: dict[str, T] = {}
    for key, entry in entries.items():
        if name and name.violation(key):
            problems.append(f"{path}.{key}: must be {name.expected}")
        try:
            parsed[key] = parse(schema, entry, f"{path}.{key}")
        except InvalidDataError as error:
            problems.extend(error.problems)
    return parsed


def keys(schema: Any, path: str = "") -> Iterator[Key]:
    """Yield the keys of ``schema``, nested keys after the key that contains them."""
    for field, annotation, rules in fields(schema):
        name = f"{path}{field.name}"
        doc = "".join(rule.text for rule in rules if isinstance(rule, Doc))
        bounds = ", ".join(_bounds(rules))
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        nested = dict(_nested(annotation, name))
        default = None if required or nested else _default(field)
        yield Key(name, _type_name(annotation), default, required, bounds, doc)
        for inside, kind in nested.items():
            yield from keys(kind, f"{inside}.")


def closest_match(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that ``word`` most likely misspells, if any is similar."""
    return next(iter(difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)), None)


@functools.cache
def fields(schema: type) -> list[tuple[dataclasses.Field[Any], Any, tuple[Any, ...]]]:
    """Return each field of ``schema`` with its bare type and the rules that ``Annotated`` adds.

    Fields with ``metadata={"internal": True}`` cannot be set by data.
    """
    hints, found = get_type_hints(schema, include_extras=True), []
    for field in sorted(dataclasses.fields(schema), key=lambda field: field.name not in inspect.get_annotations(schema)):
        if not field.metadata.get("internal"):
            annotation = hints[field.name]
            bare, *rules = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
            found.append((field, bare, tuple(rules)))
    return found


def _nested(annotation: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the schemas in ``annotation`` with their paths; the path of dictionary values ends with ``*``."""
    for kind in members(annotation):
        if dataclasses.is_dataclass(kind):
            yield path, kind
        elif get_origin(kind) is dict:
            yield from _nested(get_args(kind)[1], f"{path}.*")


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or ``annotation`` itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _type_name(annotation: Any) -> str:
    """Return the name of the type in Ansible's documentation."""
    names: list[str] = []
    for kind in members(annotation):
        if get_origin(kind) is Literal:
            names.extend(f'"{word}"' for word in get_args(kind))
        elif get_origin(kind) is list:
            names.append(f"list of {_type_name(get_args(kind)[0])}")
        elif get_origin(kind) is dict or dataclasses.is_dataclass(kind):
            names.append("dict")
        elif kind is not types.NoneType:
            names.append(kind.__name__)
    return " or ".join(names)


def _requirement(annotation: Any, data: object = None, rules: tuple[Any, ...] = ()) -> str:
    """Return the type that a value must have, with the first key of a dict as an example; for a word, what describes it."""
    expected = [rule.expected for rule in rules if isinstance(rule, Pattern)]
    if expected and str in members(annotation) and isinstance(data, _SCALARS):
        return f"must be {expected[0]}"
    first = [fields(kind)[0][0].name for path, kind in _nested(annotation, "") if not path]
    return f"must be {_type_name(annotation)}" + "".join(f", such as {{{name}: ...}}" for name in first)


def yaml_type(data: object) -> str:
    """Return the type as which YAML has read an unquoted value, such as ``a number``; an empty string for other values."""
    if not isinstance(data, _SCALARS):
        return ""
    return "a boolean" if isinstance(data, bool) else "a date" if isinstance(data, datetime.date) else "a number"


def _yaml_cure(annotation: Any, data: object) -> str:
    """Return how to write a value that YAML reads as another type than its author meant; an empty string for others.

    YAML 1.1 reads ``no`` as a boolean, ``3.10`` as the number 3.1, ``12:30`` as 750, and ``2026-01-31`` as a date. The value of a
    variable from the command line is a string.
    """
    kinds = members(annotation)
    if str in kinds and (name := yaml_type(data)):
        return f", {name} in YAML; put it in quotes"
    for kind, pattern in ((int, r"-?[0-9]+"), (bool, r"true|false|yes|no|on|off")):
        if kind in kinds and isinstance(data, str) and re.fullmatch(pattern, data.lower()):
            return f", a string; remove the quotes, or end its template with the filter {kind.__name__}"
    return ""


def _bounds(rules: tuple[Any, ...]) -> Iterator[str]:
    for rule in rules:
        if isinstance(rule, Range):
            yield f"{rule.low} to {rule.high}"
        elif isinstance(rule, Pattern | Network):
            yield rule.expected


class _Parser:
    """Converts data and collects the problems."""

    def __init__(self, problems: list[str], internal: Mapping[str, object]) -> None:
        self.problems = problems
        self.internal = internal

    def value(self, annotation: Any, data: object, path: str, rules: tuple[Any, ...] = ()) -> Any:
        for kind in members(annotation):
            if _fits(kind, data):
                return self._checked(kind, data, path, rules)
        return self._reject(path, data, _requirement(annotation, data, rules), rules, _yaml_cure(annotation, data))

    def _checked(self, kind: Any, data: Any, path: str, rules: tuple[Any, ...]) -> Any:
        if dataclasses.is_dataclass(kind):
            return self._mapping(kind, data, path)
        if get_origin(kind) is Literal:
            return _word(data)
        if get_origin(kind) is list:
            items = [self.value(get_args(kind)[0], item, f"{path}[{i}]", rules) for i, item in enumerate(data)]
            return _INVALID if _INVALID in items else items
        if get_origin(kind) is dict:
            values = {key: self._item(get_args(kind)[1], key, item, f"{path}.{key}", rules) for key, item in data.items()}
            return _INVALID if _INVALID in values.values() else {str(key): item for key, item in values.items()}
        for rule in rules:
            violation = rule.violation(data) if isinstance(rule, Range | Pattern | Network) else None
            if violation:
                return self._reject(path, data, violation, rules)
        return data

    def _item(self, annotation: Any, key: object, item: object, path: str, rules: tuple[Any, ...]) -> Any:
        """Return the valid item of a dictionary."""
        if not isinstance(key, str):
            self.problems.append(f"{path}: the key is {key}{_yaml_cure(str, key)}")
            return _INVALID
        return self.value(annotation, item, path, rules)

    def _mapping(self, schema: Any, data: Mapping[str, object], path: str) -> Any:
        known = {field.name: (field, annotation, rules) for field, annotation, rules in fields(schema)}
        before = len(self.problems)
        invalid = set(self._unknown_keys(schema, data, known, path))
        values = dict(self.internal)
        self.internal = {}
        for name, (field, annotation, rules) in known.items():
            if name in data:
                values[name] = self.value(annotation, data[name], f"{path}.{name}", rules)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                self.problems.append(f"{path}.{name}: is required; {_requirement(annotation)}")
                invalid.add(name)
        invalid.update(self._exactly_one(schema, data, path))
        invalid.update(name for name, value in values.items() if value is _INVALID)
        return schema(**values) if len(self.problems) == before else _partial(schema, values, invalid)

    def _unknown_keys(self, schema: Any, data: Mapping[str, object], known: Collection[str], path: str) -> Iterator[str]:
        """Report the unknown keys, and yield the keys that they probably misspell."""
        replaced: Mapping[str, str] = getattr(schema, "REPLACED", {})
        for key in data:
            if key in replaced:
                self.problems.append(f"{path}.{key}: {replaced[key]}")
            elif key not in known:
                near = closest_match(str(key), known)
                right = f"did you mean {near}?" if near else f"valid keys are {', '.join(known)}"
                self.problems.append(f"{path}.{key}: unknown key; {right}")
                if near:
                    yield near

    def _exactly_one(self, schema: Any, data: Mapping[str, object], path: str) -> Collection[str]:
        """Report if the data has none or several of the keys of which exactly one is valid, and return these keys."""
        choices: tuple[str, ...] = getattr(schema, "EXACTLY_ONE", ())
        given = [name for name in choices if name in data]
        if not choices or len(given) == 1:
            return ()
        found = " and ".join(given) if given else "none"
        self.problems.append(f"{path}: set exactly one of {', '.join(choices)}; found {found}")
        return choices

    def _reject(self, path: str, data: object, violation: str, rules: tuple[Any, ...], cure: str = "") -> object:
        hidden = any(isinstance(rule, Hidden) or rule is Hidden for rule in rules)
        shown = "(not shown)" if hidden else str(data) if isinstance(data, datetime.date) else repr(data)
        if len(shown) > QUOTED_LENGTH:
            shown = f"{shown[:QUOTED_LENGTH]}..."
        self.problems.append(f"{path}: {violation}; found {shown}{cure}")
        return _INVALID


def _partial(schema: Any, values: Mapping[str, object], invalid: Collection[str]) -> Any:
    """Return an instance of ``schema`` with ``values`` and defaults, whose ``invalid`` keys raise `InvalidKeyError`."""
    kind = type(schema.__name__, (schema,), dict.fromkeys(invalid, property(_raise_invalid_key)))
    instance: Any = object.__new__(kind)
    for field in dataclasses.fields(schema):
        if field.name not in invalid:  # `schema` is frozen
            object.__setattr__(instance, field.name, values.get(field.name, _default(field)))
    return instance


def _raise_invalid_key(_instance: object) -> NoReturn:
    raise InvalidKeyError


def _fits(kind: Any, data: object) -> bool:
    """Return whether ``data`` has the outer type of ``kind``, regardless of its items."""
    origin = get_origin(kind)
    if origin is Literal:
        return _word(data) in get_args(kind)
    if origin is dict or dataclasses.is_dataclass(kind):
        return isinstance(data, Mapping)
    if kind is types.NoneType:
        return data is None
    if kind is int:
        return isinstance(data, int) and not isinstance(data, bool)
    return isinstance(data, origin or kind)


def _word(data: object) -> object:
    """Return ``on`` or ``off`` for a boolean, as YAML 1.1 parses these words as one when they are not quoted."""
    return ("on" if data else "off") if isinstance(data, bool) else data
