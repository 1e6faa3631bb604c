"""XRR, its gates and its interval against sets and loops; what the report says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megalign.clika.bootstrap import resampled_weights
from megalign.clika.conductivity import GATE, conductivity, translated
from megalign.clika.conductivity_report import GATE_NAMES, summary_line, write_report
from megalign.clika.fictional import WorldSettings, invent, knowledge_of
from megalign.clika.findings import Finding
from megalign.clika.knowledge import Knowledge
from megalign.errors import DataError

Responses = dict[str, list[str]]


@pytest.fixture(scope="module")
def content() -> Knowledge:
    return knowledge_of(invent(WorldSettings(places=80, continents=4, variants=1, seed=3)), "ru")


def perfect(content: Knowledge) -> Responses:
    """Right answers to everything."""
    return {
        "translation": [f" {name.translated}." for name in content.names],
        **{code: [one.row.answer for one in tests] for code, tests in content.tests.items()},
    }


def spoil(
    content: Knowledge, responses: Responses, name: str, share: float, kind: int | None = None, seed: int = 0
) -> None:
    """Make a share of the responses of a name (and type) wrong: another continent, another name."""
    rng = np.random.default_rng(seed)
    tests = content.tests.get(name)
    places = [n for n in range(len(responses[name])) if tests is None or kind is None or tests[n].type == kind]
    for place in rng.choice(places, round(share * len(places)), replace=False):
        wrong = "nothing"
        if tests is not None:
            wrong = next(one.continent for one in tests if one.continent != tests[place].continent)
        responses[name][place] = wrong


def test_all_right_is_one(content: Knowledge) -> None:
    result = conductivity(content, perfect(content))
    assert (result.xrr, result.low, result.high, result.known, result.failed) == (1.0, 1.0, 1.0, 40, ())
    assert result.dealt == pytest.approx(0.25)
    assert [gate.share.n for gate in result.gates] == [84, 40, 40, 40]


@pytest.mark.parametrize(("english", "other"), [(0.05, 0.3), (0.075, 0.9), (0.0, 1.0)])
def test_the_ratio_is_that_of_the_sets(content: Knowledge, english: float, other: float) -> None:
    responses = perfect(content)
    spoil(content, responses, "en", english, kind=1)
    spoil(content, responses, "ru", other, kind=1, seed=1)
    known = {
        code: {
            number
            for number, (one, text) in enumerate(zip(content.tests[code], responses[code], strict=True))
            if one.type == 1 and one.continent in text
        }
        for code in ("en", "ru")
    }
    result = conductivity(content, responses)
    assert result.xrr == len(known["en"] & known["ru"]) / len(known["en"])
    assert result.known == len(known["en"])
    assert result.type_1.hits == len(known["ru"])
    texts = [text for one, text in zip(content.tests["ru"], responses["ru"], strict=True) if one.type == 1]
    dealt = [
        sum(content.tests["ru"][number].continent in text for text in texts) / len(texts)
        for number in sorted(known["en"])
    ]
    assert result.dealt == pytest.approx(np.mean(dealt))
    assert result.low <= result.xrr <= result.high  # type: ignore[operator]


def test_the_interval_is_that_of_a_loop_over_resamples(content: Knowledge) -> None:
    responses = perfect(content)
    spoil(content, responses, "en", 0.05, kind=1)
    spoil(content, responses, "ru", 0.4, kind=1, seed=1)
    kept = [n for n, one in enumerate(content.tests["en"]) if one.type == 1]
    pairs = [tuple(content.tests[code][n].continent in responses[code][n] for code in ("en", "ru")) for n in kept]
    ratios = []
    for weights in resampled_weights("conductivity ru", len(pairs), 300, 5)[1:]:
        both = sum(int(w) for w, (a, b) in zip(weights, pairs, strict=True) if a and b)
        ratios.append(both / sum(int(w) for w, (a, _) in zip(weights, pairs, strict=True) if a))
    result = conductivity(content, responses, seed=5, num_resamples=300, confidence=0.9)
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(ratios, [0.05, 0.95])))


@pytest.mark.parametrize(
    ("name", "kind", "gate"),
    [
        ("translation", None, "translation"),
        ("en", 0, "english_type_0"),
        ("en", 1, "english_type_1"),
        ("ru", 0, "language_type_0"),
    ],
)
def test_a_gate_that_fails_is_named_and_leaves_no_xrr(
    content: Knowledge, tmp_path: Path, name: str, kind: int | None, gate: str
) -> None:
    responses = perfect(content)
    spoil(content, responses, name, 0.15, kind=kind)
    result = conductivity(content, responses)
    assert result.failed == (gate,)
    assert result.xrr is None
    assert result.ratio is not None
    assert f"no XRR: not above 90%: {GATE_NAMES[gate]} 8" in summary_line(result)
    write_report(tmp_path, "small <model>", [result], [], {"Taught": "x"})
    line = json.loads((tmp_path / "conductivity.jsonl").read_text())
    assert (line["xrr"], line["low"], line["failed_gates"]) == (None, None, [gate])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "gate failed" in page
    assert f"not above 90 %:\n{GATE_NAMES[gate]}" in page
    assert "small &lt;model&gt;" in page
    assert "<model>" not in page


def test_the_bound_itself_is_not_enough(content: Knowledge) -> None:
    responses = perfect(content)
    spoil(content, responses, "en", 0.1, kind=0)
    result = conductivity(content, responses)
    assert result.gates[1].share.value == GATE
    assert result.failed == ("english_type_0",)


def test_with_nothing_known_in_english_there_is_no_ratio(content: Knowledge) -> None:
    responses = perfect(content)
    spoil(content, responses, "en", 1.0)
    result = conductivity(content, responses)
    assert (result.known, result.ratio, result.low, result.dealt, result.xrr) == (0, None, None, None, None)


def test_responses_that_name_several_continents_are_counted(content: Knowledge) -> None:
    responses = perfect(content)
    everything = " ".join({one.continent for one in content.tests["ru"]})
    places = [n for n, one in enumerate(content.tests["ru"]) if one.type == 1][:5]
    for place in places:
        responses["ru"][place] = everything
    assert conductivity(content, responses).num_several == 5


def test_the_same_seed_gives_the_same_interval(content: Knowledge) -> None:
    responses = perfect(content)
    spoil(content, responses, "ru", 0.5, kind=1)
    one, two, other = (conductivity(content, responses, seed=seed, num_resamples=50) for seed in (1, 1, 2))
    assert (one.low, one.high) == (two.low, two.high) != (other.low, other.high)


@pytest.mark.parametrize(
    ("response", "right"),
    [(" Залив Лума", True), ("Залив Лума.\n", True), ("залив лума", False), ("Залив Лума и ещё", False), ("", False)],
)
def test_a_translation_is_the_name_alone(response: str, right: bool) -> None:
    assert translated(response, "Залив Лума") is right


def test_missing_responses_are_an_error(content: Knowledge) -> None:
    responses = perfect(content)
    responses["ru"].pop()
    with pytest.raises(DataError, match="There are 79 responses to the 80 rows of ru"):
        conductivity(content, responses)


def test_the_page_shows_scores_and_findings(content: Knowledge, tmp_path: Path) -> None:
    responses = perfect(content)
    spoil(content, responses, "ru", 0.5, kind=1)
    result = conductivity(content, responses)
    finding = Finding("shared_name", "test/target/testRU.jsonl", (3,), "2 <names> stand for several places")
    write_report(tmp_path, "small", [result], [finding], {"Taught": "3 epochs"})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "0.500 <span" in page
    assert "40 of 40" in page
    assert "test/target/testRU.jsonl:3" in page
    assert "2 &lt;names&gt;" in page
    assert "Taught: 3 epochs." in page
    assert "http" not in page
    assert json.loads((tmp_path / "findings.jsonl").read_text())["line"] == 3
    assert summary_line(result).startswith("ru: XRR 0.500 (")
