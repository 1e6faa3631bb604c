"""Planted faults: each kind is found with its file and line, and sound data give nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_responses import damage, read_rows, write_rows

from megalign.clika import Finding, Protocol, ScoreOptions, check_answers, load_protocol, read_answers, score
from megalign.clika.findings import KINDS
from megalign.clika.panel import panels
from megalign.errors import ConfigError, DataError

Rows = list[dict[str, Any]]
FILE = "x_geo/DE_trans/large_res_bf16.jsonl"


def find(source: Path, protocol: Protocol) -> list[Finding]:
    answers, findings = read_answers(source, protocol)
    return [*findings, *check_answers(panels(answers), protocol)]


def set_value(at: int, name: str, value: Any) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[at][name] = value

    return change


def swap(rows: Rows) -> None:
    rows[4], rows[9] = rows[9], rows[4]


def repeat_option(rows: Rows) -> None:
    rows[6]["input"] = "Q?\nA. Rome\nB. Paris\nC. rome \nD. Oslo\nAnswer:"


def wrong_label(rows: Rows) -> None:
    rows[3]["label"] = "A" if rows[3]["label"] != "A" else "B"


def constant(rows: Rows) -> None:
    for row in rows[:23]:
        row["res"] = "C. so"


PLANTED: list[tuple[str, Callable[[Rows], Any], tuple[int, ...], str]] = [
    (
        "missing_rows",
        lambda rows: rows[:7] + rows[8:],
        (8,),
        "1 item(s) have no row: 107; the first is x_geo/en/large_res_bf16.jsonl:8",
    ),
    ("unexpected_rows", set_value(5, "uuid", 999), (6,), "1 item(s) that most files of x_geo lack: 999"),
    ("duplicated_rows", lambda rows: [*rows, rows[2], rows[2]], (25, 26), "2 row(s) repeat an item: 102, 102"),
    ("out_of_order", swap, (6, 7, 8, 9, 10), "row(s) stand after items that follow them in other files"),
    ("different_labels", wrong_label, (4,), "1 label(s) differ from most files: 103 is"),
    ("repeated_options", repeat_option, (7,), "1 question(s) offer an option twice: line 7: 'rome'"),
    ("constant_answers", constant, (), "large answers C in 2"),
    (
        "look_alike_letters",
        set_value(8, "res", "А. да"),
        (9,),
        "1 answer(s) start with a letter that only looks like A",
    ),
    ("bad_row", set_value(1, "label", "F"), (2,), "1 row(s): label 'F' is none of A, B, C, D"),
    ("bad_row", set_value(1, "label", 3), (2,), "1 row(s): label '3' is none of"),
    ("bad_row", set_value(1, "uuid", None), (2,), "1 row(s): no item"),
    ("bad_row", set_value(1, "uuid", [1]), (2,), "1 row(s): no item"),
    ("bad_row", set_value(1, "res", None), (2,), "1 row(s): response is no text; counted as unparsed"),
]


def test_sound_data_have_no_findings(responses: Path, protocol: Protocol) -> None:
    assert find(responses, protocol) == []


@pytest.mark.parametrize(("kind", "change", "lines", "message"), PLANTED)
def test_a_planted_fault_is_found(
    kind: str, change: Callable[[Rows], Any], lines: tuple[int, ...], message: str, responses: Path, protocol: Protocol
) -> None:
    damage(responses / FILE, change)
    found = [finding for finding in find(responses, protocol) if finding.kind == kind]
    assert [(finding.path, finding.lines) for finding in found] == [(FILE, lines)]
    assert message in found[0].message
    assert str(found[0]).startswith(FILE + (f":{lines[0]}" if lines else "") + f": {kind}: ")
    assert kind in KINDS


def test_lines_that_are_no_json_are_named(responses: Path, protocol: Protocol) -> None:
    path = responses / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0], lines[3], lines[5], lines[8], lines[9] = b"[1]\n", b'{"id": 3,\n', b"7\n", b"\xff\xfe\n", b"\n"
    path.write_bytes(b"".join(lines))
    found = {finding.kind: finding for finding in find(responses, protocol)}
    assert found["not_jsonl"].lines == (1, 4, 6, 9), "a blank line is not a fault"
    assert found["not_jsonl"].path == FILE
    assert "100, 103, 105, 108, 109" in found["missing_rows"].message
    answers, _ = read_answers(responses, protocol)
    cell = next(one for one in answers if one.path == FILE)
    assert cell.lines.tolist() == [line for line in range(2, 25) if line not in (4, 6, 9, 10)]


def test_missing_rows_are_placed_where_they_would_stand(responses: Path, protocol: Protocol) -> None:
    damage(responses / FILE, lambda rows: rows[2:9] + rows[11:20])
    (found,) = find(responses, protocol)
    assert (found.kind, found.lines) == ("missing_rows", (1, 8, 17))
    assert found.message.startswith("8 item(s) have no row: 100, 101, 109, 110, 120 and 3 more; the first is")


def test_a_mark_of_the_encoding_is_no_fault(responses: Path, protocol: Protocol) -> None:
    before = read_answers(responses, protocol)[0]
    path = responses / FILE
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert find(responses, protocol) == []
    assert [one.parsed.released.tolist() for one in read_answers(responses, protocol)[0]] == [
        one.parsed.released.tolist() for one in before
    ]


def test_an_empty_file_is_found_and_a_folder_is_no_file(responses: Path, protocol: Protocol) -> None:
    folder = (responses / FILE).parent
    (folder / "none_res.jsonl").write_bytes(b"")
    (folder / "folder_res.jsonl").mkdir()
    answers, findings = read_answers(responses, protocol)
    assert len(answers) == 12
    assert [(one.kind, Path(one.path).name, one.message) for one in findings] == [
        ("missing_rows", "none_res.jsonl", "the file has no rows")
    ]


def test_a_file_that_cannot_be_read_is_named(responses: Path, protocol: Protocol, tmp_path: Path) -> None:
    (responses / FILE).unlink()
    (responses / FILE).symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"large_res_bf16.jsonl cannot be read: No such file"):
        read_answers(responses, protocol)


def test_a_file_without_rows_is_left_out(responses: Path, protocol: Protocol) -> None:
    (responses / FILE).write_bytes(b"not json\n")
    answers, findings = read_answers(responses, protocol)
    assert FILE not in {one.path for one in answers}
    assert [(one.kind, one.path, one.lines) for one in findings] == [("not_jsonl", FILE, (1,))]


def test_faults_beyond_the_first_block_have_their_line(tmp_path: Path) -> None:
    rows = [{"id": at, "res": "A", "label": "A", "input": "q"} for at in range(1000)]
    rows[700]["label"] = "x"
    write_rows(tmp_path / "x_csqa" / "en" / "m_res.jsonl", rows)
    answers, findings = read_answers(tmp_path, load_protocol())
    assert [(one.kind, one.lines) for one in findings] == [("bad_row", (701,))]
    assert answers[0].items == (*range(700), *range(701, 1000))


def test_rows_in_another_order_keep_their_scores(responses: Path, protocol: Protocol, tmp_path: Path) -> None:
    options = ScoreOptions(protocol, report=False, num_resamples=20)
    before = score(responses, tmp_path / "before", options)
    damage(responses / FILE, lambda rows: rows[::-1])
    after = score(responses, tmp_path / "after", options)
    assert after.scores == before.scores
    assert after.intervals == before.intervals
    assert {finding.kind for finding in after.findings} == {"out_of_order"}


def test_a_duplicate_does_not_count(responses: Path, protocol: Protocol) -> None:
    damage(responses / FILE, lambda rows: [*rows, {**rows[0], "res": "Q"}])
    answers, _ = read_answers(responses, protocol)
    cell = next(one for one in answers if one.path == FILE)
    assert len(cell.items) == 24
    assert cell.parsed.released[0] > 0


def test_every_file_short_is_seen_by_the_number_of_items(responses: Path, protocol: Protocol) -> None:
    for path in (responses / "x_geo").glob("*/*"):
        damage(path, lambda rows: rows[:20])
    found = find(responses, protocol)
    assert {finding.kind for finding in found} == {"missing_rows"}
    assert len(found) == 6
    assert found[0].message == "20 rows; x_geo has 24 questions"


def test_a_disputed_label_goes_to_english_on_a_tie(tmp_path: Path) -> None:
    for folder, label in (("de", "B"), ("en", "A")):
        rows = [{"id": 0, "res": "A", "label": label}]
        write_rows(tmp_path / "x_geo" / folder / "m_res.jsonl", rows)
    found = [one for one in find(tmp_path, load_protocol()) if one.kind == "different_labels"]
    assert [one.path for one in found] == ["x_geo/de/m_res.jsonl"]
    assert "0 is B, elsewhere A" in found[0].message


def test_missing_english_and_ignored_files_are_told(responses: Path, protocol: Protocol) -> None:
    (responses / "x_geo" / "en" / "large_res_bf16.jsonl").rename(responses / "x_geo" / "en" / "large.json")
    found = {finding.kind: finding for finding in find(responses, protocol)}
    assert set(found) == {"no_english", "ignored_file"}
    assert found["no_english"].message.startswith("large has no English responses to x_geo: no consistency for x_geo/")
    assert found["ignored_file"].path == "x_geo/en/large.json"


def test_strict_makes_findings_errors(responses: Path, protocol: Protocol, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ScoreOptions(protocol, fail_on_findings=True, report=False, num_resamples=20)
    score(responses, out, options)
    (out / "scores.jsonl").unlink()
    damage(responses / FILE, wrong_label)
    with pytest.raises(
        DataError, match=rf"1 finding in the data:\n  {FILE}:4: different_labels: .*because of --strict"
    ):
        score(responses, out, options)
    assert not (out / "scores.jsonl").exists()
    assert '"line":4' in (out / "findings.jsonl").read_text(encoding="utf-8")


def test_what_cannot_be_scored_is_an_error(responses: Path, protocol: Protocol, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent does not exist\. Give a folder of responses or a table"):
        read_answers(tmp_path / "absent", protocol)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no responses.*A folder has the layout DATASET/LANGUAGE"):
        read_answers(tmp_path / "empty", protocol)
    write_rows(responses / "x_geo" / "en" / "large_res_fp32.jsonl", read_rows(responses / FILE))
    with pytest.raises(
        DataError, match=r"large_res_bf16.jsonl and .*large_res_fp32.jsonl are both large on x_geo in en"
    ):
        read_answers(responses, protocol)
    assert len(read_answers(responses, protocol, files="*_bf16.jsonl")[0]) == 12
    write_rows(responses / "x_new" / "en" / "m_res.jsonl", read_rows(responses / FILE))
    with pytest.raises(DataError, match=r"data set x_new is unknown.*Describe it in a data-set file"):
        read_answers(responses, protocol, files="m_res.jsonl")


def test_names_of_language_folders(tmp_path: Path) -> None:
    path = tmp_path / "names.yml"
    path.write_text("languages: {Chinese: zh, jp: ja}\n", encoding="utf-8")
    protocol = load_protocol(path)
    names = {"DE_trans": "de", "ar": "ar", "ZH_trans": "zh", "pt-BR": "pt-br", "Chinese": "zh", "jp": "ja"}
    assert {name: protocol.language(name) for name in names} == names
    with pytest.raises(DataError, match=r"'German' is no language code.*Map it under `languages`"):
        protocol.language("German")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: {x: {num_options: 4, knowledge: basic}}", "give either top_percent or top_model"),
        (
            "datasets: {x: {num_options: 4, knowledge: basic, top_percent: 20.0}}",
            "top_percent 20.0 is not above chance, 25",
        ),
        ("datasets: {x: {num_options: 1, knowledge: basic, top_percent: 90.0}}", "num_options"),
        ("dataset: {}", "unknown key dataset"),
    ],
)
def test_a_wrong_data_set_file_is_told(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_protocol(path)


def test_a_first_line_that_is_a_list_hides_nothing(responses: Path, protocol: Protocol) -> None:
    """JSON all through, so only the kind of the first line is wrong: items are still named by their uuid."""
    path = responses / FILE
    path.write_bytes(b"[1]\n" + path.read_bytes())
    answers, findings = read_answers(responses, protocol)
    assert [(one.kind, one.path, one.lines) for one in findings] == [("not_jsonl", FILE, (1,))]
    assert next(one for one in answers if one.path == FILE).items == tuple(range(100, 124))
