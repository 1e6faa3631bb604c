"""Sources, alignment, quality gate, mixes, and the folder that the tool builds."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from crossin_samples import lines_of, task_rows, write_json_rows, write_lines, write_lud
from tool_command import tool as run_tool

from megalign.crossin.data.build import BuildOptions, build
from megalign.crossin.data.mix import MODES, Mix, build_rows, pairs_of
from megalign.crossin.data.quality import Gate, apply_gate
from megalign.crossin.data.sources import Lud, parse_named, read_lud, read_source
from megalign.crossin.prompts import Tag, Template, user_turn
from megalign.errors import ConfigError, DataError
from megalign.translation.languages import language_named, language_of, script_shares, small_word_language

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "crossin"


tool = partial(run_tool, "build_crossin")


@pytest.fixture
def lud(tmp_path: Path) -> Lud:
    found = read_lud(write_lud(tmp_path / "lud"))
    apply_gate(found)
    return found


@pytest.fixture
def ctd(tmp_path: Path) -> Path:
    rows = [
        {
            "instruction": f"Prove that {n} is less than {n + 1}.",
            "input": "",
            "output": f"{n} + 1 = {n + 1}.",
            "data_source": "invented",
        }
        for n in range(30)
    ]
    return write_lines(tmp_path / "ctd.jsonl", rows)


def faults_of(tmp_path: Path, language: str, place: int, **changed: str) -> dict[str, dict[str, int]]:
    """The gate's counts where one row of one language is changed."""
    rows = task_rows(language)
    rows[place] = {**rows[place], **changed}
    found = read_lud(write_lud(tmp_path / "lud", **{language: rows}))
    counts = apply_gate(found)
    if any(counts.values()):
        assert list(found.failures) == [(language, place)]
    return {code: count for code, count in counts.items() if count}


def test_good_translations_pass(lud: Lud) -> None:
    assert not lud.failures
    assert lud.languages == ["en", "es", "zh"]


@pytest.mark.parametrize(
    ("language", "place", "changed", "reason"),
    [
        ("es", 4, {"output": "The frog lives near the water of a pond and eats insects."}, "untranslated"),
        ("zh", 4, {"output": "The frog lives near the water of a pond and eats insects."}, "untranslated"),
        ("es", 4, {"output": "The frog lives near the water of a pond and eats insectos."}, "untranslated"),
        ("es", 0, {"output": "It is a bright blue on the best of the days, as you know."}, "wrong_language"),
        ("es", 0, {"output": "Der Himmel ist an einem klaren Tag blau und nicht grau, wie es die Leute sagen."}, "wrong_language"),
        ("zh", 0, {"output": "El cielo es azul en un día claro."}, "wrong_script"),
        ("es", 0, {"output": "天空是蓝色的，没有云，非常晴朗，阳光明媚的一天。"}, "wrong_script"),
        ("es", 1, {"output": ""}, "missing"),
        ("es", 1, {"input": ""}, "input_presence"),
        ("es", 0, {"input": "cielo"}, "input_presence"),
        ("es", 2, {"output": "La expresión `len(nombres)` cuenta los nombres de la lista."}, "code_changed"),
        ("es", 5, {"output": "El puente fue construido en el año 1923 por el pueblo."}, "numbers_changed"),
        ("es", 0, {"output": "El cielo es azul en un día claro." * 5}, "length_ratio"),
        ("zh", 0, {"output": "晴朗的日子里天空是蓝色的，没有云。" * 5}, "length_ratio"),
    ],
)  # fmt: skip
def test_a_bad_translation_is_dropped_and_counted(
    language: str, place: int, changed: dict[str, str], reason: str, tmp_path: Path
) -> None:
    assert faults_of(tmp_path, language, place, **changed) == {language: {reason: 1}}


@pytest.mark.parametrize(
    ("language", "place", "changed"),
    [
        ("es", 3, {"input": "France"}),  # a name
        ("zh", 2, {"output": "表达式 `len(names)` 计算 names 列表中名字的数量。"}),
        ("es", 5, {"output": "El puente fue construido en el año 1.932 por el pueblo."}),  # other marks in numbers
        ("es", 0, {"output": "El cielo es azul, blue, en un día claro."}),
    ],
)  # fmt: skip
def test_what_is_right_passes(language: str, place: int, changed: dict[str, str], tmp_path: Path) -> None:
    assert faults_of(tmp_path, language, place, **changed) == {}


def test_code_may_be_the_whole_answer_and_its_comments_translated(tmp_path: Path) -> None:
    english, spanish = task_rows("en"), task_rows("es")
    english[2]["output"] = "```\ndef total(values):\n    # adds all of the values\n    return sum(values)\n```"
    spanish[2]["output"] = "```\ndef total(values):\n    # suma todos los valores\n    return sum(values)\n```"
    chinese = task_rows("zh")
    chinese[2]["output"] = english[2]["output"]
    lud = read_lud(write_lud(tmp_path, en=english, es=spanish, zh=chinese))
    assert not any(apply_gate(lud).values())
    spanish[2]["output"] = spanish[2]["output"].replace("return sum(values)", "return max(values)")
    lud = read_lud(write_lud(tmp_path, en=english, es=spanish, zh=chinese))
    assert apply_gate(lud)["es"] == {"code_changed": 1}


def test_languages_are_told_by_script_and_small_words() -> None:
    assert script_shares("abc 狗") == {"Latin": 0.75, "Han": 0.25}
    assert script_shares("123 !") == {}
    said = {
        "en": "This is the text that we have written for the test of the list.",
        "es": "Este es el texto que hemos escrito para la prueba de la lista.",
        "vi": "Đây là một văn bản được viết cho các bạn trong danh sách của người dùng.",
        "de": "Das ist der Text, den wir für die Liste geschrieben haben und nicht mit dir.",
        "fr": "Voici le texte que nous avons écrit pour la liste et les mots qui sont dans la page.",
    }
    assert {code: small_word_language(text) for code, text in said.items()} == {code: code for code in said}
    assert small_word_language("Teks ini dibuat untuk daftar yang ada di buku dengan kata itu.") in {"id", "ms"}
    assert small_word_language("Aluminium, magnesium, titanium, lithium") is None
    assert language_named("vietnamese").code == "vi"
    assert language_named("zh").name == "Chinese"
    for lookup in (language_of, language_named):
        with pytest.raises(ConfigError, match="There is no language 'xx'"):
            lookup("xx")


def test_files_of_other_lengths_are_misaligned(tmp_path: Path) -> None:
    files = write_lud(tmp_path, es=task_rows("es")[:-1])
    with pytest.raises(DataError, match=r"es\.jsonl \(es\) has 23 rows, en\.jsonl \(en\) has 24"):
        read_lud(files)


@pytest.mark.parametrize("first", [0, 40])
@pytest.mark.parametrize("shift", [1, -2])
def test_rows_shifted_against_each_other_are_misaligned(shift: int, first: int, tmp_path: Path) -> None:
    rows = task_rows("es", repeats=16)
    moved = rows[:first] + rows[first + shift :] + rows[first : first + shift] if shift > 0 else (
        rows[:first] + rows[first : first - shift] + rows[first : len(rows) + shift]
    )  # fmt: skip
    assert len(moved) == len(rows)
    files = write_lud(tmp_path, repeats=16, es=moved)
    with pytest.raises(
        DataError,
        match=rf"es\.jsonl \(es\) is misaligned: rows \d+ to \d+ fit en\.jsonl better when shifted by {shift}",
    ):
        read_lud(files)


def test_the_shipped_files_are_aligned_and_pass(tmp_path: Path) -> None:
    lud = read_lud({code: str(EXAMPLE / f"lud_{code}.jsonl") for code in ("en", "zh", "vi", "es")})
    assert not any(apply_gate(lud).values())
    assert lud.num_rows > 100
    rows = (EXAMPLE / "lud_es.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    shifted = tmp_path / "lud_es.jsonl"
    shifted.write_text("".join([*rows[1:], rows[0]]), encoding="utf-8")
    with pytest.raises(DataError, match="is misaligned"):
        read_lud({"en": str(EXAMPLE / "lud_en.jsonl"), "es": str(shifted)})


def test_a_mix_has_what_is_asked_for(lud: Lud, ctd: Path) -> None:
    sizes = {"base": 20, "en2x": 10, "x2en": 12, "x2x": 48, "translation": 30}
    rows = build_rows(Mix(sizes, seed=1), read_source(str(ctd)), lud)
    assert Counter(row["mode"] for row in rows) == sizes
    assert len({row["id"] for row in rows}) == len(rows) == 120
    by_mode = {mode: [row for row in rows if row["mode"] == mode] for mode in MODES}
    pairs = {mode: Counter((row["source_language"], row["target_language"]) for row in by_mode[mode]) for mode in MODES}
    assert pairs["base"] == {("en", "en"): 20}
    assert pairs["en2x"] == {("en", "es"): 5, ("en", "zh"): 5}
    assert pairs["x2en"] == {("es", "en"): 6, ("zh", "en"): 6}
    assert pairs["x2x"] == dict.fromkeys(itertools.permutations(("en", "es", "zh"), 2), 8)
    assert set(pairs["translation"]) == {("en", "es"), ("es", "en"), ("en", "zh"), ("zh", "en")}
    assert max(pairs["translation"].values()) - min(pairs["translation"].values()) <= 1
    for row in rows:
        source, target = row["source_language"], row["target_language"]
        place = row["provenance"][0]["row"]
        if row["mode"] == "base":
            assert row["provenance"][0]["origin"] == "invented"
            continue
        asked, answered = lud.record(source, place), lud.record(target, place)
        if row["mode"] == "translation":
            assert row["instruction"] == f"Translate the following sentence into {language_of(target).name}."
            assert (row["input"], row["output"]) == (asked.instruction, answered.instruction)
        else:
            tagged = f"{asked.input}\n[{target}]" if asked.input else f"[{target}]"
            assert (row["instruction"], row["input"], row["output"]) == (asked.instruction, tagged, answered.output)
        assert row["messages"][0]["content"] == f"{row['instruction']}\n{row['input']}"


def test_draws_are_without_replacement_and_spread_over_rows(lud: Lud) -> None:
    every = build_rows(Mix({"x2x": 24 * 6}, seed=3), None, lud)
    assert len({(row["provenance"][0]["row"], row["source_language"], row["target_language"]) for row in every}) == 144
    once = build_rows(Mix({"x2x": "all"}, seed=3), None, lud)
    assert sorted(row["provenance"][0]["row"] for row in once) == list(range(24))
    assert {row["id"] for row in once} <= {row["id"] for row in every}
    twice = build_rows(Mix({"x2x": 48}, seed=3), None, lud)
    assert set(Counter(row["provenance"][0]["row"] for row in twice).values()) == {2}
    with pytest.raises(ConfigError, match="x2x is to have 145 rows, and there are 144 pairs of usable rows"):
        build_rows(Mix({"x2x": 145}), None, lud)


def test_each_mode_has_its_own_stream(lud: Lud, ctd: Path) -> None:
    source = read_source(str(ctd))
    alone = {row["id"] for row in build_rows(Mix({"x2x": 12}, seed=5), None, lud)}
    together = build_rows(Mix({"base": 5, "translation": 7, "x2x": 12}, seed=5), source, lud)
    assert alone == {row["id"] for row in together if row["mode"] == "x2x"}
    assert alone != {row["id"] for row in build_rows(Mix({"x2x": 12}, seed=6), None, lud)}
    assert together == build_rows(Mix({"base": 5, "translation": 7, "x2x": 12}, seed=5), source, lud)


def test_pairs_are_weighted(lud: Lud) -> None:
    weights = Mix.parse_weights("zh-es=3,es-zh,zh-zh=2")
    assert weights == {("zh", "es"): 3.0, ("es", "zh"): 1.0, ("zh", "zh"): 2.0}
    rows = build_rows(Mix({"x2x": 24}, weights), None, lud)
    counts = Counter((row["source_language"], row["target_language"]) for row in rows)
    assert counts == {("zh", "es"): 12, ("es", "zh"): 4, ("zh", "zh"): 8}
    translated = build_rows(Mix({"translation": 8}, weights), None, lud)
    assert {(row["source_language"], row["target_language"]) for row in translated} == {("zh", "es"), ("es", "zh")}
    with pytest.raises(ConfigError, match="No pair of languages that is named fits en2x"):
        pairs_of("en2x", lud.languages, weights)
    with pytest.raises(ConfigError, match="The pair vi-zh needs vi, and LUD has en, es, zh"):
        pairs_of("x2x", lud.languages, {("vi", "zh"): 1.0})


def test_a_failed_translation_is_in_no_pair_of_its_language(tmp_path: Path) -> None:
    rows = task_rows("es")
    rows[4]["output"] = task_rows("en")[4]["output"]
    lud = read_lud(write_lud(tmp_path, es=rows))
    apply_gate(lud)
    drawn = build_rows(Mix({"x2x": 24 * 6 - 4}), None, lud)
    of_row = [row for row in drawn if row["provenance"][0]["row"] == 4]
    assert {(row["source_language"], row["target_language"]) for row in of_row} == {("en", "zh"), ("zh", "en")}
    with pytest.raises(ConfigError, match="there are 140 pairs of usable rows"):
        build_rows(Mix({"x2x": 141}), None, lud)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: Mix({}), "The mix is empty"),
        (lambda: Mix({"y2y": 3}), "There is no mode 'y2y'"),
        (lambda: Mix({"base": 0}), "The size of base is 0"),
        (lambda: Mix.parse("base=3,base=4"), "cannot be read at 'base=4'"),
        (lambda: Mix.parse("base=many"), "cannot be read at 'base=many'"),
        (lambda: Mix.parse("x2x=3", "zh"), "The pairs 'zh' cannot be read"),
        (lambda: Mix.parse("x2x=3", "zh-es=x"), "cannot be read at 'zh-es=x'"),
        (lambda: Mix.parse("x2x=3", "zh-es=-1"), "The weight of zh-es is -1"),
        (lambda: Mix.parse("x2x=3", "zh-xx"), "There is no language 'xx'"),
        (lambda: Mix({"translation": 3}, translate="Translate."), "names no language"),
        (lambda: Tag("[x]"), "is the same for all languages"),
        (lambda: Tag("{language}"), "cannot be filled in"),
        (lambda: Gate(min_kept_code=2), "The gate's min_kept_code is 2"),
        (lambda: Gate(max_length_factor=1), "The gate's max_length_factor is 1"),
        (lambda: parse_named(["a=1", "a=2"]), "'a=2' cannot be read"),
        (lambda: parse_named(["a=caf\udce9"]), "cannot be read"),
        (lambda: read_lud({"en": "x"}), "LUD is given in en"),
        (lambda: build_rows(Mix({"base": 3}), None, None), "The mix has base, and there is no data for it"),
        (lambda: Template.of("none"), "There is no template 'none'"),
        (lambda: Template.of("tokenizer", object()), "The tokenizer has no chat template"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        given()  # type: ignore[operator]


def test_sources_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text("[{")
    for path, message in (
        (tmp_path / "none.json", "does not exist"),
        (tmp_path / "half.json", "is not JSON"),
        (write_json_rows(tmp_path / "object.json", {}), "holds no list of rows"),
        (write_json_rows(tmp_path / "empty.json", []), "holds no rows"),
        (write_lines(tmp_path / "a.jsonl", [{"instruction": "x"}]), "row 0 has no instruction and output"),
        (write_lines(tmp_path / "b.jsonl", [{"instruction": "x", "output": 3}]), "row 0: output is no text"),
    ):
        with pytest.raises(DataError, match=message):
            read_source(str(path))


def test_tags_and_templates() -> None:
    assert Tag().apply("text", "zh") == "text\n[zh]"
    assert Tag().apply("", "zh") == "[zh]"
    assert Tag(" Answer in {name}.").apply("text", "vi") == "text Answer in Vietnamese."
    assert user_turn("Do.", "") == "Do."
    alpaca = Template.of("alpaca")
    assert alpaca.prompt("Do.").endswith("### Instruction:\nDo.\n\n### Response:\n")
    assert Template.of("chatml").completion("Do.", "Done.") == "Done.<|im_end|>"


def test_the_tool_builds_a_folder(ctd: Path, tmp_path: Path) -> None:
    spanish = task_rows("es")
    spanish[3]["output"] = task_rows("en")[3]["output"]
    files = write_lud(tmp_path / "lud", es=spanish)
    arguments = ["--ctd", ctd, *(part for code in files for part in ("--lud", f"{code}={files[code]}"))]
    out = tmp_path / "out"
    said = tool(
        *arguments,
        "--mix",
        "base=all,x2x=30",
        "--template",
        "alpaca",
        "--format",
        "both",
        "--out",
        out,
        "--note",
        "licence=CC0",
    )
    assert "es: 1 rows dropped: untranslated" in said
    assert f"60 rows (base 30, x2x 30): {out}" in said
    rows = lines_of(out / "mix.jsonl")
    assert all(row["prompt"].endswith("### Response:\n") and row["completion"] == row["output"] for row in rows)
    assert lines_of(out / "dropped.jsonl") == [
        {"language": "es", "file": "es.jsonl", "row": 3, "reason": "untranslated"}
    ]
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["dropped"] == {"en": {}, "es": {"untranslated": 1}, "zh": {}}
    assert sum(one["rows"] for one in manifest["rows_by_pair"]) == manifest["num_rows"] == 60
    sheet = (out / "datasheet.md").read_text(encoding="utf-8")
    assert "| es | untranslated | 1 |" in sheet
    assert "- licence: CC0" in sheet
    from datasets import load_from_disk

    assert [row["id"] for row in load_from_disk(str(out / "dataset"))] == [row["id"] for row in rows]
    again = tmp_path / "again"
    tool(*arguments, "--mix", "base=all,x2x=30", "--template", "alpaca", "--out", again, "--note", "licence=CC0")
    assert (again / "mix.jsonl").read_bytes() == (out / "mix.jsonl").read_bytes()


def test_a_file_filled_with_english_ends_the_build(tmp_path: Path) -> None:
    files = write_lud(tmp_path / "lud", zh=task_rows("en"))
    arguments = [part for code in files for part in ("--lud", f"{code}={files[code]}")]
    said = tool(*arguments, "--mix", "x2x=all", "--out", tmp_path / "out", code=3)
    assert "of 24 rows of zh.jsonl (zh) fail the quality gate" in said
    assert "untranslated" in said
    assert not (tmp_path / "out").exists()


def test_nothing_but_a_mix_is_replaced(ctd: Path, tmp_path: Path) -> None:
    kept = tmp_path / "folder" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("years of work")
    arguments = ("--ctd", ctd, "--mix", "base=2", "--out")
    for out, message in ((kept.parent, "exists and is no mix"), (kept, "exists and is no mix")):
        assert message in tool(*arguments, out, code=2)
    assert "cannot be made a folder" in tool(*arguments, kept / "mix", code=2)
    assert kept.read_text() == "years of work"
    for _ in range(2):
        tool(*arguments, tmp_path / "mix")


def test_the_gate_is_set_by_name() -> None:
    assert Gate.parse(["max_copied_share=0.8", "min_letters=9"]) == Gate(max_copied_share=0.8, min_letters=9)
    for given, message in (
        ("copies=1", "The gate has no 'copies'"),
        ("min_letters=few", "min_letters is 'few'"),
        ("max_copied_share=1.5", "Set a share from 0 to 1"),
        ("max_length_factor=nan", "Set more than 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            Gate.parse([given])


def test_a_build_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no format 'xml'"):
        build(BuildOptions(Mix({"base": 1}), format="xml"), tmp_path / "out")
    rows = [{"instruction": "x", "output": " "}]
    with pytest.raises(DataError, match="base has no tasks with instruction and output left"):
        build(BuildOptions(Mix({"base": 1}), ctd=str(write_lines(tmp_path / "c.jsonl", rows))), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [float("nan"), -0.1, 1.5])
def test_the_share_that_may_be_dropped_is_a_share(share: float, ctd: Path, tmp_path: Path) -> None:
    """With nan no loss was too large."""
    with pytest.raises(ConfigError, match="Set a share from 0 to 1"):
        build(BuildOptions(Mix({"base": "all"}), str(ctd), max_dropped_share=share), tmp_path / "mix")


@pytest.mark.parametrize("tag", ["{code.foo}", "{code[x]}"])
def test_tags_that_ask_for_parts_are_refused(tag: str) -> None:
    with pytest.raises(ConfigError, match="cannot be filled in"):
        Tag(tag)


def test_letters_of_the_gate_are_not_negative() -> None:
    with pytest.raises(ConfigError, match="min_letters is -5"):
        Gate.parse(["min_letters=-5"])


def test_a_mark_of_byte_order_is_no_fault_and_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = json.dumps({"instruction": "a", "output": "b"})
    path.write_text(f"{row}\n{row}\n", encoding="utf-8-sig")
    assert len(read_source(str(path)).records) == 2
    path.write_text(f"{row}\n\n{{", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:3 is not JSON"):
        read_source(str(path))
