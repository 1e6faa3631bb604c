"""Mixes of instruction data: base, en2x, x2en, x2x and translation, sampled without replacement and stratified by language.

| mode | instruction, input | output |
|---|---|---|
| base | CTD English | English |
| en2x | LUD English, tag of x | x |
| x2en | LUD x, tag of English | English |
| x2x | LUD x, tag of y | y |
| translation | "Translate the following sentence into <y>.", the instruction in x | the instruction in y |

Lin et al. 2024, arXiv:2404.11932. A mode draws (row, pair of languages) without replacement: pairs take turns by their weights, and a
pair takes rows that its mode has not used as long as there are any. Each mode has a random stream of its own, and the first 3000 draws
of 6000 are those of 3000.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megalign.corpus.keyed_random import generator
from megalign.crossin.data.sources import ENGLISH, Lud, Source
from megalign.crossin.prompts import DEFAULT_TAG, TRANSLATE, Tag, user_turn
from megalign.errors import ConfigError, DataError
from megalign.translation.languages import language_of

MODES = ("base", "en2x", "x2en", "x2x", "translation")
ALL = "all"
Pair = tuple[str, str]


@dataclass(frozen=True)
class Mix:
    """What is mixed.

    Attributes:
        sizes: number of rows by mode; "all" is every row of CTD, or every row of LUD once.
        weights: how often each pair of languages (asked in, answered in) is taken, relative to the others, where a mode can have it;
            empty for all pairs equally. A pair of one language twice counts only where it is named.
        tag: how the language of the answer is asked for.
        translate: the instruction of translation tasks, with {name}.
        seed: of every draw.

    Raises:
        ConfigError: nothing to mix, an unknown mode, a wrong size or weight.
    """

    sizes: Mapping[str, int | str]
    weights: Mapping[Pair, float] = field(default_factory=dict)
    tag: Tag = Tag()  # noqa: RUF009 - frozen
    translate: str = TRANSLATE
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ConfigError("The mix is empty.", fix=f"Name sizes of {', '.join(MODES)}, such as base=all,x2x=6000.")
        for mode, size in self.sizes.items():
            if mode not in MODES:
                raise ConfigError(f"There is no mode {mode!r}.", fix=f"Choose of {', '.join(MODES)}.")
            if size != ALL and (not isinstance(size, int) or size < 1):
                raise ConfigError(f"The size of {mode} is {size!r}.", fix="Give a number of rows, or all.")
        for pair, weight in self.weights.items():
            if not (np.isfinite(weight) and weight > 0):
                raise ConfigError(
                    f"The weight of {'-'.join(pair)} is {weight}.", fix="Leave the pair out, or set more than 0."
                )
            for code in pair:
                language_of(code)
        if "{name}" not in self.translate:
            raise ConfigError(
                "The translation instruction names no language.", fix="Write {name} where it is to stand."
            )

    @classmethod
    def parse(cls, sizes: str, pairs: str = "", tag: str = DEFAULT_TAG, seed: int = 0) -> Mix:
        """A mix from the texts of a command line, in whose tag \\n stands for a line break."""
        return cls(cls.parse_sizes(sizes), cls.parse_weights(pairs), Tag(tag.replace("\\n", "\n")), seed=seed)

    @classmethod
    def parse_sizes(cls, text: str) -> dict[str, int | str]:
        """Sizes from text such as "base=all,x2x=6000".

        Raises:
            ConfigError: it cannot be read.
        """
        sizes: dict[str, int | str] = {}
        for part in filter(None, text.split(",")):
            mode, _, size = part.partition("=")
            if mode in sizes or not (size == ALL or size.isdecimal()):
                raise ConfigError(f"The mix {text!r} cannot be read at {part!r}.", fix="Write base=all,x2x=6000.")
            sizes[mode] = ALL if size == ALL else int(size)
        return sizes

    @classmethod
    def parse_weights(cls, text: str) -> dict[Pair, float]:
        """Weights from text such as "zh-en=2,vi-es=1"; a pair without a number has weight 1.

        Raises:
            ConfigError: it cannot be read.
        """
        weights: dict[Pair, float] = {}
        for part in filter(None, text.split(",")):
            pair, _, weight = part.partition("=")
            source, _, target = pair.partition("-")
            try:
                value = float(weight or 1)
            except ValueError:
                value = float("nan")
            if not (source and target) or not np.isfinite(value) or (source, target) in weights:
                raise ConfigError(f"The pairs {text!r} cannot be read at {part!r}.", fix="Write zh-en=2,vi-es=1.")
            weights[source, target] = value
        return weights


def build_rows(mix: Mix, ctd: Source | None, lud: Lud | None) -> list[dict[str, Any]]:
    """The mix's rows in their final order.

    A row has id, mode, instruction, input, output, source_language, target_language and provenance (file, row and origin of what it is
    made of).

    Raises:
        ConfigError: a mode without its data, or more rows than there are.
    """
    rows: list[dict[str, Any]] = []
    for mode in MODES:
        if mode not in mix.sizes:
            continue
        if mode == "base":
            rows += _base_rows(mix, _given(ctd, mode, "--ctd"))
        else:
            rows += _lud_rows(mix, mode, _given(lud, mode, "--lud"))
    order = generator(mix.seed, "crossin", "order").permutation(len(rows))
    return [rows[place] for place in order]


def pairs_of(mode: str, languages: Sequence[str], weights: Mapping[Pair, float]) -> dict[Pair, float]:
    """The pairs a mode draws from, with their weights: those named that it can have, or all it can have.

    Raises:
        ConfigError: none, or a named pair in a language that LUD does not have.
    """
    for pair in weights:
        if missing := [code for code in pair if code not in languages]:
            raise ConfigError(
                f"The pair {'-'.join(pair)} needs {missing[0]}, and LUD has {', '.join(languages)}.",
                fix="Leave the pair out, or give that language's file.",
            )
    fits: dict[str, Callable[[str, str], bool]] = {
        "en2x": lambda one, other: one == ENGLISH != other,
        "x2en": lambda one, other: one != ENGLISH == other,
        "x2x": lambda one, other: True,
        "translation": lambda one, other: one != other and (bool(weights) or ENGLISH in (one, other)),
    }
    every = {(one, other): 1.0 for one in languages for other in languages if one != other}
    pairs = {pair: weight for pair, weight in (weights or every).items() if fits[mode](*pair)}
    if not pairs:
        raise ConfigError(
            f"No pair of languages that is named fits {mode}.",
            fix="Name pairs for it, or leave --pairs out for all.",
        )
    return pairs


def _given(data: Any, mode: str, option: str) -> Any:
    if data is None:
        raise ConfigError(f"The mix has {mode}, and there is no data for it.", fix=f"Give {option}.")
    return data


def _base_rows(mix: Mix, ctd: Source) -> list[dict[str, Any]]:
    usable = [record for record in ctd.records if not record.missing]
    wanted = len(usable) if mix.sizes["base"] == ALL else int(mix.sizes["base"])
    _enough(wanted, len(usable), "base", "tasks with instruction and output")
    order = generator(mix.seed, "crossin", "base").permutation(len(usable))[:wanted]
    rows = []
    for place in order:
        record = usable[place]
        made_of = [{"file": ctd.name, "row": record.place, "origin": record.origin, "language": ENGLISH}]
        texts = (record.instruction, record.input, record.output)
        rows.append(_row("base", f"base-{record.place}", texts, (ENGLISH, ENGLISH), made_of))
    return rows


def _lud_rows(mix: Mix, mode: str, lud: Lud) -> list[dict[str, Any]]:
    weights = pairs_of(mode, lud.languages, mix.weights)
    available = {
        pair: [place for place in range(lud.num_rows) if all(lud.usable(code, place) for code in pair)]
        for pair in weights
    }
    num_places = len({place for places in available.values() for place in places})
    size = mix.sizes[mode]
    wanted = num_places if size == ALL else int(size)
    _enough(wanted, sum(map(len, available.values())), mode, "pairs of usable rows")
    streams = {pair: generator(mix.seed, "crossin", mode, *pair) for pair in weights}
    queues = {pair: [available[pair][at] for at in streams[pair].permutation(len(available[pair]))] for pair in weights}
    rows = []
    for pair, place in _take_turns(queues, weights, wanted):
        rows.append(_lud_row(mix, mode, lud, pair, place))
    return rows


def _take_turns(
    queues: Mapping[Pair, list[int]], weights: Mapping[Pair, float], wanted: int
) -> Iterator[tuple[Pair, int]]:
    """Draws (pair, row): the pair furthest behind its weight takes, of the rows it has not had, one that is used least so far.

    A pair looks for rows used at most `level` times, and raises its level when it has none left: each level reads its queue once.
    """
    total = sum(weights.values())
    taken = dict.fromkeys(queues, 0)
    level = dict.fromkeys(queues, 0)
    waiting = {pair: deque(queue) for pair, queue in queues.items()}
    passed: dict[Pair, deque[int]] = {pair: deque() for pair in queues}
    used: Counter[int] = Counter()
    for drawn in range(wanted):
        ready = [pair for pair in queues if taken[pair] < len(queues[pair])]
        pair = max(ready, key=lambda one: weights[one] / total * (drawn + 1) - taken[one])
        place = None
        while place is None:
            if not waiting[pair]:
                waiting[pair], passed[pair] = passed[pair], deque()
                level[pair] += 1
            candidate = waiting[pair].popleft()
            if used[candidate] <= level[pair]:
                place = candidate
            else:
                passed[pair].append(candidate)
        used[place] += 1
        taken[pair] += 1
        yield pair, place


def _lud_row(mix: Mix, mode: str, lud: Lud, pair: Pair, place: int) -> dict[str, Any]:
    source, target = pair
    asked, answered = lud.record(source, place), lud.record(target, place)
    if mode == "translation":
        texts = (mix.translate.format(name=language_of(target).name), asked.instruction, answered.instruction)
    else:
        texts = (asked.instruction, mix.tag.apply(asked.input, target), answered.output)
    made_of = [
        {"file": lud.sources[code].name, "row": place, "origin": lud.record(code, place).origin, "language": code}
        for code in pair
    ]
    return _row(mode, f"{mode}-{source}-{target}-{place}", texts, pair, made_of)


def _row(
    mode: str, name: str, texts: tuple[str, str, str], pair: Pair, made_of: list[dict[str, Any]]
) -> dict[str, Any]:
    instruction, text, output = texts
    return {
        "id": name,
        "mode": mode,
        "instruction": instruction,
        "input": text,
        "output": output,
        "source_language": pair[0],
        "target_language": pair[1],
        "messages": [
            {"role": "user", "content": user_turn(instruction, text)},
            {"role": "assistant", "content": output},
        ],
        "provenance": made_of,
    }


def _enough(wanted: int, there: int, mode: str, what: str) -> None:
    if there == 0:
        raise DataError(f"{mode} has no {what} left.", "Nothing passed the quality gate.", "Look at its counts.")
    if wanted > there:
        raise ConfigError(
            f"{mode} is to have {wanted} rows, and there are {there} {what}.",
            "Rows are drawn without replacement.",
            "Ask for fewer, or for all.",
        )
