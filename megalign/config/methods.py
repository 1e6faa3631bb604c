"""Methods as presets: functions from a run to the same run under a method (PreAlign section 4.3 and its ablations).

The study's `inject` and `codeswitch` sections say how a method injects and switches *if* it does; a preset says whether.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from megalign.config.run import RunConfig, SourceConfig
from megalign.errors import ConfigError


@dataclass(frozen=True)
class Method:
    """A preset and what a report says of it."""

    title: str
    description: str
    apply: Callable[[RunConfig], RunConfig]
    injects: bool = False
    switches: bool = False


def _traits(run: RunConfig, *, inject: Literal["before", "during", "after", False], switch: bool) -> RunConfig:
    if inject and run.inject.steps == 0:
        raise ConfigError(
            "This method injects, but inject.steps is 0.", "It would be another method, silently.", "Set it."
        )
    if switch and run.codeswitch.ratio == 0:
        raise ConfigError(
            "This method codeswitches, but codeswitch.ratio is 0.",
            "It would be another method, silently.",
            "Set it; the paper uses 0.05.",
        )
    update: dict[str, object] = {
        "inject": run.inject.model_copy(update={"when": inject} if inject else {"steps": 0}),
    }
    if not switch:
        update["codeswitch"] = run.codeswitch.model_copy(update={"ratio": 0.0})
    return run.model_copy(update=update)


def _with_sources(run: RunConfig, sources: list[SourceConfig]) -> RunConfig:
    return run.model_copy(update={"data": run.data.model_copy(update={"sources": sources})})


def joint(run: RunConfig) -> RunConfig:
    """Pretraining on the mixture, nothing else."""
    return _traits(run, inject=False, switch=False)


def prealign(run: RunConfig) -> RunConfig:
    """Injection, then pretraining with input-only codeswitching."""
    return _traits(run, inject="before", switch=True)


def partial_table(fraction: float) -> Callable[[RunConfig], RunConfig]:
    """PreAlign with the most frequent share of the alignment table."""

    def apply(run: RunConfig) -> RunConfig:
        run = prealign(run)
        return run.model_copy(update={"data": run.data.model_copy(update={"table_fraction": fraction})})

    return apply


def label_mode(mode: str) -> Callable[[RunConfig], RunConfig]:
    """PreAlign with other targets inside the replacements."""

    def apply(run: RunConfig) -> RunConfig:
        run = prealign(run)
        return run.model_copy(update={"codeswitch": run.codeswitch.model_copy(update={"label_mode": mode})})

    return apply


def on_the_fly(run: RunConfig) -> RunConfig:
    """The contrastive loss in the steps of pretraining itself, no codeswitching."""
    return _traits(run, inject="during", switch=False)


def post(run: RunConfig) -> RunConfig:
    """Pretraining, then the injection, no codeswitching."""
    return _traits(run, inject="after", switch=False)


def cs_only(run: RunConfig) -> RunConfig:
    """Codeswitching without injection."""
    return _traits(run, inject=False, switch=True)


def init_only(run: RunConfig) -> RunConfig:
    """Injection without codeswitching."""
    return _traits(run, inject="before", switch=False)


def golden(run: RunConfig) -> RunConfig:
    """Clone rows start as copies of their originals, in place of injection; codeswitching as in prealign."""
    return _traits(run, inject=False, switch=True).model_copy(update={"golden_embeddings": True})


def only_target(run: RunConfig) -> RunConfig:
    """The target languages' text alone; `train.max_epochs` says how often it may be read."""
    run = _traits(run, inject=False, switch=False)
    targets = [source for source in run.data.sources if source.language != run.data.source_language]
    if not targets:
        raise ConfigError(
            "The method only_target needs a source in another language than data.source_language "
            f"({run.data.source_language!r}).",
            fix="Add one to data.sources.",
        )
    return _with_sources(run, targets)


def full_target(run: RunConfig) -> RunConfig:
    """As much target text as there is source text: the source language's text read as its clone."""
    run = _traits(run, inject=False, switch=False)
    source = [source for source in run.data.sources if source.language == run.data.source_language]
    clones = [s.read_as for s in run.data.sources if s.read_as.startswith(f"{run.data.source_language}-clone")]
    if not source or not clones:
        raise ConfigError(
            "The method full_target needs a clone language among data.sources.",
            "Only a clone has as much target text as there is source text.",
            "Set corpus.clone to true, or leave the method out.",
        )
    return _with_sources(run, [source[0].model_copy(update={"as_clone": clones[0]})])


METHODS: Mapping[str, Method] = {
    "joint": Method("Joint", "Pretraining on the mixture of all languages.", joint),
    "prealign": Method(
        "PreAlign",
        "Word alignment injected before pretraining, kept by input-only codeswitching.",
        prealign,
        injects=True,
        switches=True,
    ),
    "cs_only": Method("Codeswitching only", "Input-only codeswitching without injection.", cs_only, switches=True),
    "init_only": Method("Injection only", "Injection without codeswitching.", init_only, injects=True),
    "on_the_fly": Method(
        "On the fly",
        "The contrastive loss beside the language-modelling loss during pretraining, without codeswitching.",
        on_the_fly,
        injects=True,
    ),
    "post": Method(
        "Post-alignment",
        "The injection after pretraining instead of before, without codeswitching.",
        post,
        injects=True,
    ),
    **{
        f"table_{percent}": Method(
            f"Table of {percent} %",
            f"PreAlign with the {percent} % most frequent words of the alignment table.",
            partial_table(percent / 100),
            injects=True,
            switches=True,
        )
        for percent in (25, 50, 75)
    },
    "vanilla_switching": Method(
        "Vanilla switching",
        "PreAlign with codeswitching that also predicts the replacements: every sub-word of one is a target.",
        label_mode("vanilla"),
        injects=True,
        switches=True,
    ),
    "first_subword_switching": Method(
        "First sub-word",
        "PreAlign with codeswitching that predicts the first sub-word of the original before a replacement.",
        label_mode("first_subword"),
        injects=True,
        switches=True,
    ),
    "golden": Method(
        "Golden",
        "Clone embeddings start as copies of their originals: the upper bound of alignment.",
        golden,
        switches=True,
    ),
    "only_target": Method("Only target", "The target languages' text alone.", only_target),
    "full_target": Method("Full target", "As much target text as joint has source text.", full_target),
}


def apply_method(name: str, run: RunConfig) -> RunConfig:
    """`run` under the method `name`.

    Raises:
        ConfigError: no such method, or the run lacks what it needs.
    """
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1)
        raise ConfigError(
            f"There is no method {name!r}.",
            fix=f"Did you mean {near[0]!r}?" if near else f"Choose one of {', '.join(METHODS)}.",
        )
    return METHODS[name].apply(run).model_copy(update={"method": name})
