"""All settings of a kind of file with their meaning: a YAML file to read, or to fill in."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import yaml
from pydantic import BaseModel

from megalign.errors import ConfigError

_WIDTH = 110
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
_BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "up to", "exclusiveMaximum": "below"}
# What stands between a name and the settings of one entry.
_ENTRY = {"list": "-", "mapping": "NAME:"}


@dataclass(frozen=True)
class Setting:
    """A key of a file.

    Attributes:
        name: the key, without those above.
        meaning: a sentence.
        takes: what its value may be, in words; empty for a section.
        default: its value as YAML where a file does not give it; None where a file must.
        kind: "value", "section", or a "list" of or a "mapping" to sections.
        inner: the settings of the section, or of each of them.
    """

    name: str
    meaning: str
    takes: str
    default: str | None
    kind: str
    inner: tuple[Setting, ...] = ()


def settings_of(model: type[BaseModel]) -> tuple[Setting, ...]:
    """The settings at the top of a file, and through `inner` all others."""
    schema = model.model_json_schema()
    return _settings(schema, schema.get("$defs", {}))


def reference(model: type[BaseModel], path: str = "") -> str:
    """YAML with all settings below a dotted key: meaning and type as comments, defaults as values.

    What a file must give has no value. Optional sections are comments, as is what a preset gives.

    Raises:
        ConfigError: there is no such key.
    """
    settings = everything = settings_of(model)
    lines: list[str] = []
    parts = path.split(".") if path else []
    for depth, name in enumerate(parts):
        known = {setting.name: setting for setting in settings}
        if name not in known:
            raise _unknown(path, list(_keys(everything)))
        if depth == len(parts) - 1:
            settings = (known[name],)
        else:
            lines.append(f"{'  ' * depth}{name}:")
            settings = known[name].inner
    lines += _written(settings, "  " * max(0, len(parts) - 1))
    return "\n".join(lines) + "\n"


def _keys(settings: Iterable[Setting], prefix: str = "") -> Iterator[str]:
    for setting in settings:
        yield prefix + setting.name
        yield from _keys(setting.inner, f"{prefix}{setting.name}.")


def _unknown(key: str, known: list[str]) -> ConfigError:
    last = key.rpartition(".")[2]
    named = [other for other in known if other.rpartition(".")[2] == last] or get_close_matches(key, known, n=1)
    hint = f"Did you mean {_either(named)}?" if named else "Give no key to see all."
    return ConfigError(f"There is no setting {key}.", fix=hint)


def _written(settings: Iterable[Setting], indent: str) -> Iterator[str]:
    settings = tuple(settings)
    has_preset = any(setting.name == "preset" for setting in settings)
    for setting in settings:
        lines = _lines(setting, indent)
        # A default that is written out would replace the preset's value.
        yield from _commented(lines, indent) if has_preset and setting.name != "preset" else lines


def _lines(setting: Setting, indent: str) -> Iterator[str]:
    told = f"{setting.meaning} [{setting.takes}]" if setting.takes else setting.meaning
    yield from textwrap.wrap(told, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
    if setting.kind == "value":
        yield f"{indent}{setting.name}: {'# required' if setting.default is None else setting.default}"
        return
    body = [f"{indent}{setting.name}:"]
    deeper = indent + "  "
    if setting.kind in _ENTRY:
        body.append(deeper + _ENTRY[setting.kind])
        deeper += "  "
    body += _written(setting.inner, deeper)
    if setting.default is None:
        yield from body
    else:
        yield f"{indent}{setting.name}: {setting.default}"
        yield from _commented(body, indent)


def _commented(lines: Iterable[str], indent: str) -> Iterator[str]:
    for line in lines:
        yield f"{indent}# {line.removeprefix(indent)}"


def _settings(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[Setting, ...]:
    required = schema.get("required", ())
    return tuple(_setting(name, entry, name in required, definitions) for name, entry in schema["properties"].items())


def _setting(name: str, entry: Mapping[str, Any], required: bool, definitions: Mapping[str, Any]) -> Setting:
    choices = [_resolved(choice, definitions) for choice in entry.get("anyOf", [entry])]
    kind, section = next(filter(None, (_section(choice, definitions) for choice in choices)), ("value", None))
    meaning = " ".join((entry.get("description") or (section or {}).get("description", "")).split())
    takes = _either([_type(choice, definitions) for choice in choices])
    default: str | None = None
    if kind == "section" and len(choices) == 1:
        takes = ""  # written out below
    elif not required:
        empty: Any = {"array": [], "object": {}}.get(choices[0].get("type", ""))
        default = _yaml(entry.get("default", empty))
    return Setting(name, meaning, takes, default, kind, _settings(section, definitions) if section else ())


def _resolved(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in entry:
        return entry
    found: Mapping[str, Any] = definitions[entry["$ref"].rpartition("/")[2]]
    return found


def _section(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """How an entry has a section, and the section."""
    inner = {"section": entry, "list": entry.get("items"), "mapping": entry.get("additionalProperties")}
    for kind, schema in inner.items():  # what is a section itself has no items
        if isinstance(schema, dict) and "properties" in (found := _resolved(schema, definitions)):
            return kind, found
    return None


def _type(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "enum" in entry or "const" in entry:
        return _either([str(value) for value in entry.get("enum", [entry.get("const")])])
    if "properties" in entry:
        return "section"
    kind = entry.get("type", "")
    if kind == "array":
        told = _type(_resolved(entry.get("items", {}), definitions), definitions)
        return f"list of {told or 'values'}"
    if kind == "object":
        inner = entry.get("additionalProperties")
        told = _type(_resolved(inner, definitions), definitions) if isinstance(inner, dict) else ""
        return f"mapping of names to {told or 'values'}"
    bounds = [f"{word} {entry[key]:g}" for key, word in _BOUNDS.items() if key in entry]
    return " ".join([_TYPES.get(kind, kind), *bounds])


def _either(choices: Sequence[str]) -> str:
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
