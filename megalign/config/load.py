"""YAML files and `a.b=value` overrides to typed configuration, with errors that name the key and the nearest one."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from megalign.config.models import model_preset
from megalign.config.run import RunConfig
from megalign.config.sections import ModelConfig
from megalign.config.study import StudyConfig
from megalign.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 3e-4 as a number (YAML 1.2) and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if not isinstance(key, Hashable):
                continue  # refused by SafeLoader
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z"),
    list("-+.0123456789"),
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    content = _parse(text, str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a mapping of sections, not {type(content).__name__}.")
    return content


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=value` to its dotted key and its value, read as YAML.

    Raises:
        ConfigError: not of that form.
    """
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w-]*(\.[\w-]+)*", key):
        raise ConfigError(f"The override {text!r} is not of the form section.key=value.", fix="E.g. train.steps=50.")
    return key, _parse(value, f"The value of the override {text!r}")


def apply_overrides(content: Mapping[str, Any], overrides: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A copy of `content` in which each dotted key has its new value; sections on the way are made.

    A new `model.preset` replaces the values of the one before, also where a resolved file spells them out.
    """
    result: dict[str, Any] = _copy(content)
    if isinstance(result.get("model"), str):
        result["model"] = {"preset": result["model"]}
    for key, value in overrides:
        if key == "model.preset":
            _forget_preset(result.get("model"))
        at: dict[str, Any] = result
        *sections, last = key.split(".")
        for number, section in enumerate(sections):
            inner = at.setdefault(section, {})
            if inner is None:
                inner = at[section] = {}
            if not isinstance(inner, dict):
                raise ConfigError(f"{key}: {'.'.join(sections[: number + 1])} is a value, not a section.")
            at = inner
        at[last] = value
    return result


def _forget_preset(model: Any) -> None:
    """Remove the values that are those of the model's preset."""
    if isinstance(model, dict) and isinstance(model.get("preset"), str):
        values = ModelConfig.model_validate(model_preset(model["preset"])).model_dump()
        for name in [name for name in model if name in values and model[name] == values[name]]:
            del model[name]


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _with_preset(content: dict[str, Any]) -> dict[str, Any]:
    model = content.get("model")
    if isinstance(model, str):
        model = {"preset": model}
    if isinstance(model, dict) and model.get("preset") is not None:
        content = {**content, "model": {**model_preset(str(model["preset"])), **model}}
    return content


def validate(kind: type[Config], content: Mapping[str, Any], where: str) -> Config:
    """`content` as a `kind`.

    Raises:
        ConfigError: unknown keys (with the nearest known one), wrong types, broken rules; all of them at once.
    """
    try:
        return kind.model_validate(_with_preset(dict(content)))
    except ValidationError as error:
        lines = [_explain(kind, problem) for problem in error.errors()]
        raise ConfigError(f"{where}: " + "\n  ".join(lines)) from None


def _explain(kind: type[BaseModel], problem: Any) -> str:
    path = [str(part) for part in problem["loc"]]
    dotted = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(kind, path[:-1])
        near = get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"known keys: {', '.join(known)}."
        return f"unknown key {dotted}: {hint}"
    if problem["type"] == "missing":
        return f"{dotted} is missing."
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{dotted}: {message}." if dotted else f"{message}."
    return f"{dotted}: {message} (it is {problem['input']!r})."


def _fields_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    """Field names of the section at `path`, through lists and optional sections."""
    at: Any = kind
    for part in path:
        if isinstance(at, type) and issubclass(at, BaseModel) and part in at.model_fields:
            at = _section_of(at.model_fields[part].annotation)
    return list(at.model_fields) if isinstance(at, type) and issubclass(at, BaseModel) else []


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _section_of(inner)
        if found is not None:
            return found
    return None


def load_study(path: Path, overrides: Iterable[str] = ()) -> StudyConfig:
    """The study in a YAML file, overrides applied.

    Raises:
        ConfigError: the file or an override is wrong.
    """
    content = read_yaml(path)
    if "data" in content and "methods" not in content:
        raise ConfigError(f"{path} is the file of a run, not of a study.", fix="Use it with `megalign train`.")
    return validate(StudyConfig, apply_overrides(content, map(parse_override, overrides)), str(path))


def load_run(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The run in a YAML file, overrides applied.

    Raises:
        ConfigError: the file or an override is wrong.
    """
    content = read_yaml(path)
    if "methods" in content and "data" not in content:
        raise ConfigError(
            f"{path} is the file of a study, not of a run.",
            fix="Use it with `megalign study run`, or name the config.yaml in the folder of one of its runs.",
        )
    return validate(RunConfig, apply_overrides(content, map(parse_override, overrides)), str(path))
