"""The datasheet of a mix, from its manifest (after Gebru et al. 2021, arXiv:1803.09010)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megalign.crossin.data.quality import REASONS


def datasheet(manifest: Mapping[str, Any]) -> str:
    """Markdown that says what the data is, how it was made, and what was left out."""
    parts = [
        "# Datasheet: cross-lingual instruction data",
        f"{manifest['num_rows']} rows made by `tools/build_crossin.py` after CrossIn (Lin et al. 2024, arXiv:2404.11932). "
        "`manifest.json` holds the same in full.",
        "## Composition",
        _table(("mode", "asked in", "answered in", "rows"), _pair_rows(manifest)),
        "Each row has id, mode, instruction, input, output, the languages it is asked and answered in, the chat as messages, and "
        "provenance: file and row of what it was made of.",
        _characters(manifest),
        "## Sources",
        _table(
            ("part", "language", "file", "rows", "sha256"),
            [
                (one["part"], one["language"], one["file"], one["rows"], one["sha256"][:16] or "-")
                for one in manifest["sources"]
            ],
        ),
        *_notes(manifest["notes"]),
        "## How rows were drawn",
        f"Seed {manifest['seed']}. Without replacement; pairs of languages take turns "
        + (f"by weight ({_weights(manifest['pairs'])})" if manifest["pairs"] else "equally")
        + f"; each mode has a random stream of its own. Tag of the answer's language: `{manifest['tag']!r}`. "
        f"Template: {manifest['template'] or 'none'}.",
        "## Quality gate",
        _gate(manifest),
        "What fails is not used in that language, and is never filled with English. The gate looks at scripts, small words, lengths, "
        "copies, code and numbers; it cannot tell whether a translation is right.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _pair_rows(manifest: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [(one["mode"], one["source"], one["target"], one["rows"]) for one in manifest["rows_by_pair"]]


def _weights(pairs: Mapping[str, float]) -> str:
    return ", ".join(f"{pair} {weight:g}" for pair, weight in pairs.items())


def _characters(manifest: Mapping[str, Any]) -> str:
    said = ", ".join(f"{count} in {name}s" for name, count in manifest["characters"].items())
    return f"Characters: {said}."


def _notes(notes: Mapping[str, str]) -> list[str]:
    if not notes:
        return ["Licence and origin of the sources were not stated; they are those of the files named above."]
    return ["\n".join(f"- {key}: {value}" for key, value in notes.items())]


def _gate(manifest: Mapping[str, Any]) -> str:
    if not manifest["num_lud_rows"]:
        return "No translations were used."
    rows = [
        (language, reason, count, REASONS[reason])
        for language, counts in manifest["dropped"].items()
        for reason, count in counts.items()
    ]
    if not rows:
        return f"All {manifest['num_lud_rows']} rows passed in all languages."
    return f"Of {manifest['num_lud_rows']} rows in each language, dropped:\n\n" + _table(
        ("language", "reason", "rows", "meaning"), rows
    )


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
