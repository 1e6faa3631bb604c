"""A study as runs: one RunConfig for each method and seed, and the folders they live in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalign.config import (
    METHODS,
    MethodConfig,
    RunConfig,
    SourceConfig,
    StudyConfig,
    apply_method,
    apply_overrides,
    validate,
)

_MAX_SLUG = 80


@dataclass(frozen=True)
class StudyFolder:
    """The files of a study."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "study.yaml"

    @property
    def description(self) -> Path:
        """What the report is told of the study."""
        return self.path / "study.json"

    @property
    def logs(self) -> Path:
        """Output of the steps."""
        return self.path / "logs"

    @property
    def markers(self) -> Path:
        """One file for each finished step."""
        return self.path / "steps"

    def data(self, seed: int) -> Path:
        """Data of a seed."""
        return self.path / "data" / f"seed{seed}"

    def run(self, label: str, seed: int) -> Path:
        """A run of a method."""
        return self.path / "runs" / label / f"seed{seed}"


def folder_for(config: StudyConfig, overrides: Iterable[str], parent: Path) -> StudyFolder:
    """The folder of a study: its name and its overrides, so that other settings have another folder.

    `execution.*` does not enter: it changes no result.
    """
    named = sorted(text for text in overrides if not text.startswith("execution."))
    if not named:
        return StudyFolder(parent / config.name)
    slug = "+".join(re.sub(r"[^A-Za-z0-9=._-]+", "-", text) for text in named)
    if len(slug) > _MAX_SLUG:
        slug = slug[: _MAX_SLUG - 9] + "-" + hashlib.sha256("+".join(named).encode()).hexdigest()[:8]
    return StudyFolder(parent / f"{config.name}+{slug}")


def run_config(study: StudyConfig, folder: StudyFolder, method: MethodConfig, seed: int) -> RunConfig:
    """The run of a method under a seed.

    Raises:
        ConfigError: the method does not fit the study, or its `set` names no key of a run.
    """
    corpus, data = study.corpus, folder.data(seed)
    sources = [SourceConfig(language=corpus.source_language, weight=float(corpus.source_tokens))]
    sources += [SourceConfig(language=name, weight=float(corpus.target_tokens)) for name in corpus.all_target_languages]
    shared = ("model", "train", "inject", "codeswitch", "parallel", "precision", "guards", "evaluate", "track")
    content = {
        "name": f"{study.name}/{method.label}/seed{seed}",
        "folder": str(folder.run(method.label, seed)),
        "seed": seed,
        "data": {
            "store": str(data / "store"),
            "sources": [source.model_dump() for source in sources],
            "table": str(data / "table.parquet"),
            "facts": str(data / "facts.json") if study.facts else None,
            "source_language": corpus.source_language,
        },
        **{name: getattr(study, name).model_dump(mode="json") for name in shared},
    }
    base = validate(RunConfig, content, f"study {study.name}")
    run = apply_method(method.method, base)
    content = apply_overrides(run.model_dump(mode="json"), method.set.items())
    return validate(RunConfig, content, f"method {method.label}")


def describe(study: StudyConfig) -> dict[str, Any]:
    """What the report is told of the study (study.json)."""
    corpus = study.corpus
    methods = []
    for method in study.methods:
        preset = METHODS[method.method]
        traits = [name for name, has in (("injection", preset.injects), ("codeswitch", preset.switches)) if has]
        changed = "; ".join(f"{key} = {value}" for key, value in method.set.items())
        methods.append(
            {
                "name": method.label,
                "title": method.title or preset.title,
                "description": preset.description + (f" Here with {changed}." if changed else ""),
                "traits": traits,
            }
        )
    return {
        "name": study.name,
        "title": study.title or study.name,
        "description": study.description,
        "methods": methods,
        "seeds": study.seeds,
        "reference_language": corpus.source_language,
        "languages": [corpus.source_language, *corpus.all_target_languages],
        "clone_of": {corpus.clone_language: corpus.source_language} if corpus.clone else {},
        "facts": study.facts is not None,
        "settings": dict(_flat(study.model_dump(mode="json"))),
    }


def _flat(content: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        if key in {"methods", "seeds", "name", "title", "description", "execution"} and not prefix:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            yield f"{prefix}{key}", value
