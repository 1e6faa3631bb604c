"""Scores against sets counted by hand, against the released results, and the ways of parsing."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_responses import damage, read_rows

from megalign.clika import METRICS, DataSet, Protocol, load_protocol, read_answers, score_rows
from megalign.clika.panel import panels
from megalign.clika.parse import first_two, label_codes, parse_pairs
from megalign.clika.scores import parsing_rows
from megalign.errors import DataError


def by_cell(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(row["dataset"], row["model"], row["language"]): row for row in rows}


def scored(source: Path, protocol: Protocol, **settings: Any) -> dict[tuple[str, str, str], dict[str, Any]]:
    answers, _ = read_answers(source, protocol)
    return by_cell(score_rows(panels(answers), protocol, **settings))


@pytest.mark.reference_data
def test_every_released_cell_is_reproduced(reference_data: Path) -> None:
    expected = json.loads((reference_data / "clika" / "expected.json").read_text(encoding="utf-8"))["results"]
    scores = scored(reference_data / "clika", load_protocol())
    names = {"n": "n", "acc": "accuracy", "ra": "ra"} | {name: name for name in METRICS[2:6]}
    cells = {(d, m, lang): cell for d, ms in expected.items() for m, ls in ms.items() for lang, cell in ls.items()}
    assert set(cells) == set(scores)
    assert len(cells) == 200
    for key, cell in cells.items():
        for name, ours in names.items():
            if name in cell:
                assert round(scores[key][ours], 6) == cell[name], (key, name)
            else:
                assert key[2] == "en"
                assert scores[key][ours] is None


def test_scores_are_those_of_sets_of_items(responses: Path, protocol: Protocol) -> None:
    """Every number again from Python sets and fractions, read from the files without the library."""
    scores = scored(responses, protocol)
    tops = {"x_copa": Fraction(964, 10), "x_geo": Fraction(97)}
    assert len(scores) == 12
    for (dataset, model, language), ours in scores.items():
        folder = {"en": "en", "de": "DE_trans", "ru": "RU"}[language]
        here = read_rows(responses / dataset / folder / f"{model}_res_bf16.jsonl")
        english = read_rows(responses / dataset / "en" / f"{model}_res_bf16.jsonl")
        right = {row["uuid"] for row in here if row["res"][0] == row["label"]}
        right_en = {row["uuid"] for row in english if row["res"][0] == row["label"]}
        accuracy = Fraction(100 * len(right), len(here))
        chance = Fraction(100, {"x_copa": 2, "x_geo": 4}[dataset])
        expected = {"n": len(here), "accuracy": accuracy, "parse_rate": 1}
        expected["ra"] = max(Fraction(0), (accuracy - chance) / (tops[dataset] - chance))
        if language != "en":
            same = sum(a["res"][0] == b["res"][0] for a, b in zip(here, english, strict=True))
            expected["en_co"] = Fraction(len(right & right_en), len(right))
            expected["both_over_en"] = Fraction(len(right & right_en), len(right_en))
            expected["jaccard"] = Fraction(len(right & right_en), len(right | right_en))
            expected["same_answer"] = Fraction(same, len(here))
        for name, value in expected.items():
            assert ours[name] == pytest.approx(float(value), abs=1e-12), (dataset, model, language, name)
        assert (language == "en") == (ours["en_co"] is None)


def test_nothing_right_leaves_consistency_undefined(responses: Path, protocol: Protocol) -> None:
    def all_wrong(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["res"] = "A" if row["label"] != "A" else "B"

    damage(responses / "x_copa" / "DE_trans" / "small_res_bf16.jsonl", all_wrong)
    row = scored(responses, protocol)["x_copa", "small", "de"]
    assert (row["accuracy"], row["ra"], row["en_co"]) == (0.0, 0.0, None)
    assert row["both_over_en"] == row["jaccard"] == 0.0


def test_same_answers_need_an_option(responses: Path, protocol: Protocol) -> None:
    """Two responses that name no option agree on nothing; unparsed rows stay in the denominator."""
    for folder in ("en", "RU"):
        damage(
            responses / "x_geo" / folder / "large_res_bf16.jsonl", lambda rows: [{**row, "res": "Q"} for row in rows]
        )
    row = scored(responses, protocol)["x_geo", "large", "ru"]
    assert (row["same_answer"], row["parse_rate"], row["accuracy"], row["n"]) == (0.0, 0.0, 0.0, 24)


def test_consistency_is_over_common_items(responses: Path, protocol: Protocol) -> None:
    path = responses / "x_geo" / "DE_trans" / "large_res_bf16.jsonl"
    damage(path, lambda rows: rows[5:])
    english = read_rows(responses / "x_geo" / "en" / "large_res_bf16.jsonl")[5:]
    here = read_rows(path)
    right = {row["uuid"] for row in here if row["res"][0] == row["label"]}
    right_en = {row["uuid"] for row in english if row["res"][0] == row["label"]}
    row = scored(responses, protocol)["x_geo", "large", "de"]
    assert row["n"] == 19
    assert row["both_over_en"] == pytest.approx(len(right & right_en) / len(right_en))
    assert row["jaccard"] == pytest.approx(len(right & right_en) / len(right | right_en))


def test_the_top_may_be_a_model(responses: Path, protocol: Protocol) -> None:
    named = load_protocol(top_model="large").model_copy(update={"languages": protocol.languages})
    rows = scored(responses, named)
    assert rows["x_geo", "large", "en"]["ra"] == pytest.approx(1.0)
    top, low = rows["x_geo", "large", "en"]["accuracy"], rows["x_geo", "small", "de"]["accuracy"]
    assert rows["x_geo", "small", "de"]["ra"] == pytest.approx(max(0, (low - 25) / (top - 25)))
    with pytest.raises(DataError, match="absent has no English responses to x_copa"):
        scored(responses, load_protocol(top_model="absent"))


def test_a_top_at_chance_gives_no_scale(responses: Path) -> None:
    damage(responses / "x_copa" / "en" / "small_res_bf16.jsonl", lambda rows: [{**row, "res": ""} for row in rows])
    with pytest.raises(DataError, match=r"small reaches 0.0 % on x_copa in English, chance is 50 %"):
        scored(responses, load_protocol(top_model="small"))


@pytest.mark.parametrize(
    ("response", "released", "strict", "look_alike"),
    [
        ("A", "A", "A", ""),
        ("  \n B. town", "B", "B", ""),
        ("C) x", "C", "C", ""),
        ("Because", "B", "", ""),
        ("Aé", "A", "", ""),
        ("A中", "A", "", ""),
        ("A。", "A", "A", ""),
        ("A1", "A", "A", ""),
        ("a", "", "", ""),
        ("E", "", "", ""),
        ("", "", "", ""),
        ("   ", "", "", ""),
        ("(A)", "", "", ""),
        ("А.", "", "", "A"),
        ("С", "", "", "C"),
        ("Ｂ", "", "", "B"),
        ("Е", "", "", ""),
    ],
)
def test_a_response_names_an_option(response: str, released: str, strict: str, look_alike: str) -> None:
    parsed = parse_pairs([first_two(response)], 4)
    assert [" ABCD"[codes[0]].strip() for codes in (parsed.released, parsed.strict, parsed.look_alike)] == [
        released,
        strict,
        look_alike,
    ]


def test_look_alikes_count_where_asked() -> None:
    parsed = parse_pairs([first_two("В. x"), first_two("Вода"), first_two("A")], 2, accept_look_alikes=True)
    assert parsed.released.tolist() == [2, 2, 1]
    assert parsed.strict.tolist() == [2, 0, 1]


@given(st.lists(st.text(max_size=5), max_size=20))
def test_parsing_many_is_parsing_each(texts: list[str]) -> None:
    """Against the released scorer's expression, and the same with a letter's absence after it."""
    parsed = parse_pairs([first_two(text) for text in texts], 5)
    for text, released, strict in zip(texts, parsed.released, parsed.strict, strict=True):
        first = (text.strip() or " ")[0]
        expected = "ABCDE".index(first) + 1 if first in "ABCDE" else 0
        assert released == expected
        assert strict == (0 if text.strip()[1:2].isalpha() else expected)


def test_labels_of_any_length_are_coded() -> None:
    assert label_codes(["A", "B", "E"], 4).tolist() == [1, 2, 0]
    assert label_codes(["AB", "", "C"], 4).tolist() == [0, 0, 3]


def test_the_ways_of_parsing_are_compared(responses: Path, protocol: Protocol) -> None:
    path = responses / "x_copa" / "RU" / "large_res_bf16.jsonl"
    damage(path, lambda rows: [{**row, "res": "Answer"} if at < 6 else row for at, row in enumerate(rows)])
    answers, _ = read_answers(responses, protocol)
    row = by_cell(parsing_rows(panels(answers), protocol))["x_copa", "large", "ru"]
    lost = sum(one["label"] == "A" for one in read_rows(path)[:6])
    assert row["accuracy_difference"] == pytest.approx(-100 * lost / 24)
    assert (row["parse_rate_released"], row["parse_rate_strict"]) == (1.0, 0.75)
    assert scored(responses, protocol, strict=True)["x_copa", "large", "ru"]["accuracy"] == row["accuracy_strict"]


def test_chance_follows_the_options() -> None:
    assert DataSet(num_options=5, knowledge="basic", top_percent=90.0).chance_percent == 20
    assert np.isclose(DataSet(num_options=3, knowledge="basic", top_percent=90.0).chance_percent, 100 / 3)
