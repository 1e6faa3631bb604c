"""From CTD and LUD files to a folder with a mix: rows, data set, counts of the quality gate, and a datasheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from megalign.crossin.data.datasheet import datasheet
from megalign.crossin.data.mix import MODES, Mix, build_rows
from megalign.crossin.data.quality import REASONS, Gate, apply_gate
from megalign.crossin.data.sources import Lud, Source, read_lud, read_source
from megalign.crossin.prompts import Template
from megalign.errors import ConfigError, DataError, EnvironmentProblem
from megalign.files import make_folder, new_folder, write_bytes, write_json, write_text

FORMATS = ("jsonl", "hf", "both")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class BuildOptions:
    """What is built.

    Attributes:
        mix: modes, sizes, pairs, tag and seed.
        ctd: file of the complex task data.
        lud: file of the linguistic uniformity data by language.
        gate: thresholds of the quality gate.
        max_dropped_share: of LUD rows that a language may lose to the gate; more is an error.
        template: name of a template or folder of a tokenizer, by which rows get `prompt` and `completion`; None for rows without.
        format: jsonl (mix.jsonl), hf (a data set saved to disk in dataset/), or both.
        notes: by key, words for the datasheet: licence, origin, purpose.
    """

    mix: Mix
    ctd: str | None = None
    lud: Mapping[str, str] = field(default_factory=dict)
    gate: Gate = Gate()  # noqa: RUF009 - frozen
    max_dropped_share: float = 0.5
    template: str | None = None
    format: str = "jsonl"
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """What was built: the rows, and the gate's counts by language and reason."""

    rows: list[dict[str, Any]]
    dropped: dict[str, dict[str, int]]

    def by_mode(self) -> str:
        """How many rows each mode has, in words."""
        counts = Counter(row["mode"] for row in self.rows)
        return ", ".join(f"{mode} {counts[mode]}" for mode in MODES if counts[mode])

    def losses(self) -> list[str]:
        """What the gate dropped, a line per language and reason."""
        return [
            f"{language}: {count} rows dropped: {reason} ({REASONS[reason]})"
            for language, counts in self.dropped.items()
            for reason, count in counts.items()
        ]


def build(options: BuildOptions, out: Path, say: Callable[[str], None] = lambda said: None) -> Built:
    """Build a mix into the folder `out`, which appears when it is whole and replaces an earlier mix; `say` gets what is done, in words.

    Writes mix.jsonl and / or dataset/, dropped.jsonl (language, row, reason), manifest.json (settings, sources, counts) and
    datasheet.md.

    Raises:
        ConfigError: settings that do not fit each other or the data; something else than a mix stands at `out`.
        DataError: files that are missing, damaged or misaligned; a language that loses too many rows.
        EnvironmentProblem: a library that a format needs is not installed.
    """
    check_replaceable(out)
    if not 0 <= options.max_dropped_share <= 1:
        raise ConfigError(f"--max-dropped-share is {options.max_dropped_share}.", fix="Set a share from 0 to 1.")
    if options.format not in FORMATS:
        raise ConfigError(f"There is no format {options.format!r}.", fix=f"Choose {', '.join(FORMATS)}.")
    template = Template.of(options.template) if options.template else None
    ctd = read_source(options.ctd) if options.ctd else None
    if ctd:
        say(f"{ctd.name}: {len(ctd.records)} rows")
    lud = read_lud(options.lud) if options.lud else None
    dropped: dict[str, dict[str, int]] = {}
    if lud:
        say(f"{', '.join(one.name for one in lud.sources.values())}: {lud.num_rows} rows each, aligned; now checked")
        dropped = apply_gate(lud, options.gate)
        _refuse_ruined(lud, dropped, options.max_dropped_share)
    rows = build_rows(options.mix, ctd, lud)
    if template:
        for row in rows:
            turn = row["messages"][0]["content"]
            row["prompt"], row["completion"] = template.prompt(turn), template.completion(turn, row["output"])
    built = Built(rows, dropped)
    manifest = _manifest(options, ctd, lud, built)
    with new_folder(out) as folder:
        if options.format in ("jsonl", "both"):
            write_bytes(folder / "mix.jsonl", _lines(rows))
        if options.format in ("hf", "both"):
            _save_dataset(rows, folder / "dataset")
        write_bytes(folder / "dropped.jsonl", _lines(_dropped_rows(lud)))
        write_text(folder / "datasheet.md", datasheet(manifest))
        write_json(folder / MANIFEST, manifest)
    return built


def check_replaceable(out: Path) -> None:
    """Let nothing but an earlier mix be replaced.

    Raises:
        ConfigError: `out` is a file, or a folder with other content.
    """
    is_mix = (out / MANIFEST).is_file() and (out / "datasheet.md").is_file()
    if out.exists() and not is_mix and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(
            f"{out} exists and is no mix.",
            "It would be replaced as a whole.",
            "Name a new folder, or remove this one yourself.",
        )
    make_folder(out.parent)


def _refuse_ruined(lud: Lud, dropped: dict[str, dict[str, int]], most: float) -> None:
    for language, counts in dropped.items():
        lost = sum(counts.values())
        if lost > most * lud.num_rows:
            said = ", ".join(f"{count} {reason} ({REASONS[reason]})" for reason, count in counts.items())
            raise DataError(
                f"{lost} of {lud.num_rows} rows of {lud.sources[language].name} ({language}) fail the quality gate: {said}.",
                "So many point to a wrong file, not to single bad translations.",
                "Look at the file, or raise --max-dropped-share.",
            )


def _manifest(options: BuildOptions, ctd: Source | None, lud: Lud | None, built: Built) -> dict[str, Any]:
    sources: list[dict[str, Any]] = []
    if ctd:
        sources.append({"part": "CTD", "language": "en", **_described(ctd)})
    if lud:
        sources += [{"part": "LUD", "language": code, **_described(lud.sources[code])} for code in lud.languages]
    mix = options.mix
    pairs = Counter((row["mode"], row["source_language"], row["target_language"]) for row in built.rows)
    return {
        "format": 1,
        "seed": mix.seed,
        "sizes": dict(mix.sizes),
        "pairs": {"-".join(pair): weight for pair, weight in mix.weights.items()},
        "tag": mix.tag.text,
        "translate": mix.translate,
        "template": options.template,
        "gate": asdict(options.gate),
        "sources": sources,
        "num_rows": len(built.rows),
        "rows_by_mode": dict(Counter(row["mode"] for row in built.rows)),
        "rows_by_pair": [
            {"mode": mode, "source": source, "target": target, "rows": count}
            for (mode, source, target), count in sorted(pairs.items())
        ],
        "characters": {name: sum(len(row[name]) for row in built.rows) for name in ("instruction", "input", "output")},
        "dropped": built.dropped,
        "num_lud_rows": lud.num_rows if lud else 0,
        "notes": dict(options.notes),
    }


def _described(source: Source) -> dict[str, Any]:
    return {"file": source.name, "rows": len(source.records), "sha256": source.sha256}


def _dropped_rows(lud: Lud | None) -> list[dict[str, Any]]:
    if lud is None:
        return []
    return [
        {"language": language, "file": lud.sources[language].name, "row": place, "reason": reason}
        for (language, place), reason in lud.failures.items()
    ]


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def _save_dataset(rows: list[dict[str, Any]], folder: Path) -> None:
    try:
        from datasets import Dataset, disable_progress_bars
    except ImportError:
        raise EnvironmentProblem(
            "datasets is not installed.", fix="pip install megalign[hf], or --format jsonl"
        ) from None
    disable_progress_bars()
    Dataset.from_list(rows).save_to_disk(folder)
