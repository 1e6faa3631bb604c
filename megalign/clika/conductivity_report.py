"""What a conductivity run found, as conductivity.jsonl, as lines for the terminal and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from megalign.clika.conductivity import GATE, TRANSLATION, Conductivity, Share
from megalign.clika.findings import Finding
from megalign.clika.knowledge_checks import KINDS
from megalign.clika.page import UNDEFINED, share
from megalign.files import write_bytes, write_text
from megalign.pages import template

GATE_NAMES = {
    TRANSLATION: "translation of names",
    "english_type_0": "English, taught in both",
    "english_type_1": "English, taught in English alone",
    "language_type_0": "the language, taught in both",
}


def write_report(
    out: Path, model: str, results: Sequence[Conductivity], findings: Sequence[Finding], about: Mapping[str, str]
) -> None:
    """Write conductivity.jsonl, findings.jsonl and report.html.

    Args:
        out: the folder.
        model: name of the model that was taught.
        results: a result per language.
        findings: what the checks of the knowledge found.
        about: what else the page says of the run, name -> text.
    """
    rows = [{"model": model, **one.row()} for one in results]
    write_bytes(out / "conductivity.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in rows))
    write_bytes(out / "findings.jsonl", b"".join(orjson.dumps(one.row()) + b"\n" for one in findings))
    write_text(out / "report.html", render(model, results, findings, about))


def summary_line(result: Conductivity) -> str:
    """The result of a language in a line; which gates failed, where one did."""
    if result.failed:
        failed = [
            f"{name} {gate.share.value:.1%}"
            for gate in result.gates
            for name in [GATE_NAMES[gate.name]]
            if not gate.passed
        ]
        return f"{result.language}: no XRR: not above {GATE:.0%}: {'; '.join(failed)}"
    bounds = "" if result.low is None or result.high is None else f" ({result.low:.3f} to {result.high:.3f})"
    return (
        f"{result.language}: XRR {share(result.xrr)}{bounds} over {result.known} places; "
        f"responses dealt out at random: {share(result.dealt)}"
    )


def render(model: str, results: Sequence[Conductivity], findings: Sequence[Finding], about: Mapping[str, str]) -> str:
    """The page; everything that comes from files is escaped by the template engine."""
    return template(Path(__file__).parent, "conductivity.html.j2", {"share": share, "bounds": bounds}).render(
        model=model,
        results=results,
        findings=findings,
        about=about,
        gate=GATE,
        gate_names=GATE_NAMES,
        kinds=KINDS,
        undefined=UNDEFINED,
    )


def bounds(value: Share) -> str:
    """The interval of a share."""
    return f"{value.low:.3f} to {value.high:.3f}"
