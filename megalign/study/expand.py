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
from megalign.config.tasks import NliConfig
from megalign.errors import ConfigError
from megalign.scaling.ladder import Rung, rung_of

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
            "store": str(corpus.path) if corpus.kind == "store" else str(data / "store"),
            "sources": [source.model_dump() for source in sources],
            "table": str(data / "table.parquet"),
            "facts": str(data / "facts.json") if study.facts else None,
            "periods": str(data / "periods.json") if study.dynamics else None,
            "source_language": corpus.source_language,
        },
        **{name: getattr(study, name).model_dump(mode="json") for name in shared},
    }
    base = validate(RunConfig, content, f"study {study.name}")
    run = apply_method(method.method, base)
    content = apply_overrides(run.model_dump(mode="json"), method.set.items())
    return validate(RunConfig, content, f"method {method.label}")


def nli_settings(study: StudyConfig, folder: StudyFolder, seed: int) -> NliConfig:
    """The settings of language inference, with the files that the study made; a clone is tested on its original's pairs."""
    assert study.nli is not None
    if study.nli.kind == "files":
        return study.nli
    made = folder.data(seed) / "nli"
    corpus = study.corpus
    languages = (corpus.source_language, *corpus.all_target_languages)
    files = {"train": str(made / "train.jsonl"), "test": {name: str(made / "test.jsonl") for name in languages}}
    content = {**study.nli.model_dump(mode="json"), "kind": "files", "num_train": 0, "num_test": 0, **files}
    return validate(NliConfig, content, f"study {study.name}")


@dataclass(frozen=True)
class LadderRun:
    """A method at one size and target ratio: one run for each seed.

    Attributes:
        base: label of the method in the study's settings.
        size: name of the size.
        rung: what the rules make of them.
        method: the method as it is run, with a label of its own.
    """

    base: str
    size: str
    rung: Rung
    method: MethodConfig


def ladder_runs(study: StudyConfig) -> list[LadderRun]:
    """Sizes x target ratios x methods of a study with a ladder, in this order.

    Raises:
        ConfigError: a size is not possible, or wants more text than the corpus has.
    """
    ladder, corpus = study.ladder, study.corpus
    if ladder is None:
        return []
    found = []
    for size in ladder.sizes:
        for ratio in ladder.target_ratios:
            for method in study.methods:
                if ratio not in ladder.ratios(method.label):
                    continue
                rung = rung_of(
                    run_config(study, StudyFolder(Path(study.name)), method, study.seeds[0]),
                    size,
                    ratio,
                    ladder,
                    num_targets=len(corpus.all_target_languages),
                    vocab_size=corpus.vocab_size * (2 if corpus.clone else 1),
                )
                _check_text(study, size.name, rung)
                title = method.title or METHODS[method.method].title
                changes: dict[str, Any] = {
                    "name": f"{method.label}-{size.name}-r{ratio:g}",
                    "title": f"{title}, {size.name}, {ratio:g}:1",
                    "set": {**method.set, **rung.settings},
                }
                found.append(LadderRun(method.label, size.name, rung, method.model_copy(update=changes)))
    return found


def _check_text(study: StudyConfig, size: str, rung: Rung) -> None:
    """Refuse a rung that would read text twice: repeated tokens are worth less, and no rule here says how much."""
    corpus = study.corpus
    for language, tokens in rung.tokens.items():
        is_source = language == corpus.source_language
        available = corpus.source_tokens if is_source else corpus.target_tokens
        if tokens > available:
            raise ConfigError(
                f"The ladder's size {size} reads {tokens:,} tokens of {language} at the target ratio "
                f"{rung.target_ratio:g}; corpus.{'source' if is_source else 'target'}_tokens is {available:,}.",
                "Text read twice would make sizes and ratios differ by more than size and ratio.",
                "Raise the corpus, or lower ladder.budget.",
            )


def methods_of(study: StudyConfig) -> list[MethodConfig]:
    """What is run for each seed: the study's methods, at every rung of its ladder where it has one."""
    return [run.method for run in ladder_runs(study)] if study.ladder is not None else list(study.methods)


def describe(study: StudyConfig) -> dict[str, Any]:
    """What the report is told of the study (study.json)."""
    corpus = study.corpus
    methods = []
    rungs = {run.method.label: run for run in ladder_runs(study)}
    for method in methods_of(study):
        preset = METHODS[method.method]
        traits = [name for name, has in (("injection", preset.injects), ("codeswitch", preset.switches)) if has]
        changed = "; ".join(
            f"{key} = {value}" for key, value in method.set.items() if not isinstance(value, dict | list)
        )
        entry: dict[str, Any] = {
            "name": method.label,
            "title": method.title or preset.title,
            "description": preset.description + (f" Here with {changed}." if changed else ""),
            "traits": traits,
        }
        if method.label in rungs:
            run = rungs[method.label]
            entry["ladder"] = {"method": run.base, "size": run.size, "target_ratio": run.rung.target_ratio}
        methods.append(entry)
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
