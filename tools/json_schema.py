"""Return the JSON Schema of a schema of core/schema.py, with which editors complete and check a file.

Ansible templates a value before it is validated, so the JSON Schema allows a template in place of any value.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import Doc, Pattern, Range, fields, members

#: A string with an expression or a statement of Jinja.
TEMPLATE = {"type": "string", "pattern": r"\{[{%]"}
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", types.NoneType: "null"}
#: Booleans that YAML 1.1 reads in place of unquoted words.
BOOLEANS = {"on": True, "off": False}


def json_schema(schema: Any) -> dict[str, Any]:
    """Return the JSON Schema of a dataclass with the keys of a dict."""
    described = list(fields(schema))
    required = [field.name for field, _type, _rules in described if _is_required(field)]
    exactly_one = [{"required": [name]} for name in getattr(schema, "EXACTLY_ONE", ())]
    return {
        "type": "object",
        "properties": {field.name: _key(field, annotation, rules) for field, annotation, rules in described},
        "additionalProperties": False,
        **({"required": required} if required else {}),
        **({"oneOf": exactly_one} if exactly_one else {}),
    }


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _key(field: dataclasses.Field[Any], annotation: Any, rules: tuple[Any, ...]) -> dict[str, Any]:
    """Return the JSON Schema of a key, with its description and default."""
    texts = [re.sub(r"\bC\((.+?)\)", r"`\1`", rule.text) for rule in rules if isinstance(rule, Doc)]
    described: dict[str, Any] = {"description": "".join(texts)}
    if isinstance(field.default, str | int | bool):
        described["default"] = field.default
    return described | _value(annotation, rules)


def _value(annotation: Any, rules: tuple[Any, ...]) -> dict[str, Any]:
    """Return the JSON Schema of a value: one of the types of ``annotation``, or a template."""
    types_ = list(_types(annotation, rules))
    if {"type": "string"} not in types_:
        types_.append(TEMPLATE)
    return types_[0] if len(types_) == 1 else {"anyOf": types_}


def _types(annotation: Any, rules: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """Yield the JSON Schema of each type in ``annotation``."""
    for kind in members(annotation):
        if dataclasses.is_dataclass(kind):
            yield json_schema(kind)
        elif get_origin(kind) is Literal:
            words = get_args(kind)
            yield {"enum": [*words, *(BOOLEANS[word] for word in words if word in BOOLEANS)]}
        elif get_origin(kind) is list:
            yield {"type": "array", "items": _value(get_args(kind)[0], rules)}
        elif get_origin(kind) is dict:
            yield {"type": "object", "additionalProperties": _value(get_args(kind)[1], rules)}
        else:
            yield {"type": TYPES[kind], **_bounds(kind, rules)}


def _bounds(kind: type, rules: tuple[Any, ...]) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    for rule in rules:
        if isinstance(rule, Range) and kind is int:
            bounds |= {"minimum": rule.low, "maximum": rule.high}
        elif isinstance(rule, Pattern) and kind is str:
            bounds["pattern"] = f"^(?:{rule.regex})$"
    return bounds
