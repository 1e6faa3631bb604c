"""Tables in, a report out: `megalign scaling`."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import small_study
from typer.testing import CliRunner

from megalign.cli.app import app
from megalign.config import load_run
from megalign.errors import ConfigError, DataError, MegalignError
from megalign.files import read_json, write_json
from megalign.scaling.fits.analysis import Question, analyse
from megalign.scaling.fits.bootstrap import FitSettings
from megalign.scaling.fits.measurements import read_table, table_csv
from megalign.scaling.fits.page import write_report
from megalign.study.expand import StudyFolder
from megalign.study.ladder_results import read_ladder
from megalign.training.dry_run import dry_run

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples" / "scaling"
TABLE6 = EXAMPLES / "paper_table6.csv"


def command(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, ["scaling", *map(str, arguments)], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_table_6_is_fitted_and_not_believed(tmp_path: Path) -> None:
    """Three sizes, three parameters: every curve passes through its points, and nothing is claimed of it."""
    output = command("fit", TABLE6, "--out", tmp_path / "fit")
    assert "beyond 1.21 B the data support no statement" in output
    content = read_json(tmp_path / "fit" / "fits.json")
    losses = [one for one in content["curves"] if one["metric"] == "nll_per_token"]
    assert len(losses) == 10
    for one in losses:
        assert not one["supported"]
        assert one["reasons"][0].startswith("3 sizes support 3 parameters exactly")
    assert content["predictions"] == []
    page = (tmp_path / "fit" / "index.html").read_text(encoding="utf-8")
    assert content["supported"][:40] in page
    assert not re.search(r"https?://", page)
    HTMLParser().feed(page)


@pytest.mark.parametrize(
    ("method", "size", "row"),
    [
        ("joint", "150M", "25.7 99.7 43.5 46.9 49.8 26.2 25.1 26.8 26.3"),
        ("prealign", "150M", "25.4 91.1 39.8 40.7 44.6 45.7 48.2 43.4 46.0"),
        ("joint", "400M", "20.3 79.8 32.5 34.8 39.6 37.8 39.5 36.1 37.7"),
        ("prealign", "400M", "19.9 75.2 28.3 30.7 33.6 63.8 66.5 64.7 63.6"),
        ("joint", "1.3B", "15.8 62.2 24.0 27.7 31.2 49.6 44.1 45.5 48.0"),
        ("prealign", "1.3B", "16.1 58.0 23.3 25.3 29.4 71.1 73.9 72.7 72.5"),
    ],
)
def test_table_6_is_the_papers(method: str, size: str, row: str) -> None:
    """The paper's rows: perplexity of en zh de ar ru, then CLKA of zh de ar ru."""
    value = {(m.language, m.metric): m.value for m in read_table(TABLE6) if (m.method, m.size) == (method, size)}
    found = [math.exp(value[language, "nll_per_token"]) for language in ("en", "zh", "de", "ar", "ru")]
    found += [100 * value[language, "clka"] for language in ("zh", "de", "ar", "ru")]
    assert found == pytest.approx([float(cell) for cell in row.split()])


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        command("fit", TABLE6, "--out", tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"index.html", "fits.json", "measurements.csv", "loss_zh.png", "gain.png", "clka_de.png"} <= set(files)
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert read_table(tmp_path / "one" / "measurements.csv") == read_table(TABLE6)


def test_jsonl_is_read_as_csv_is(tmp_path: Path) -> None:
    found = read_table(TABLE6)
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(vars(one)) + "\n" for one in found), encoding="utf-8")
    assert read_table(path) == found
    (tmp_path / "t.csv").write_bytes(table_csv(found))
    assert read_table(tmp_path / "t.csv") == found


HEAD = "method,size,parameters,language,metric,value\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", HEAD, "t.csv has no rows"),
        (
            "t.csv",
            "method,size\njoint,s\n",
            r"row 1 has no parameters, language, metric, value\..*The columns are: method",
        ),
        ("t.csv", HEAD + "joint,s,big,xx,perplexity,3\n", "row 1: parameters is 'big', not a finite number"),
        ("t.csv", HEAD + "joint,s,1e6,xx,perplexity,nan\n", "value is 'nan', not a finite number"),
        ("t.csv", HEAD + "joint,s,0,xx,perplexity,3\n", "parameters is 0"),
        ("t.csv", HEAD + "joint,s,1e6,xx,perplexity,0.9\n", "perplexity is 0.9.*a perplexity above one"),
        ("t.csv", HEAD + "joint,s,1e6,xx,clka,45.7\n", "clka is 45.7.*Divide percentages by 100"),
        ("t.jsonl", "{\n", "line 1 is not JSON"),
        ("t.jsonl", "[1]\n", "line 1 is not an object"),
    ],
)
def test_broken_tables_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)
    with pytest.raises(DataError, match="There is no table"):
        read_table(tmp_path / "absent.csv")


def test_the_readme_says_what_the_measured_ladder_supports(tmp_path: Path) -> None:
    command("fit", EXAMPLES / "cpu_ladder.csv", "--out", tmp_path / "fit")
    content = read_json(tmp_path / "fit" / "fits.json")
    readme = " ".join((EXAMPLES / "README.md").read_text(encoding="utf-8").split())
    assert content["supported"] in readme
    gains = [one["nats"] for one in content["gains"] if one["language"] == "en-clone"]
    for gain in gains:
        assert f"{gain['value']:.2f} [{gain['low']:.2f}, {gain['high']:.2f}]" in readme
    for one in content["effective_data_multipliers"][1:]:
        multiplier = one["multiplier"]
        assert f"{multiplier['value']:.2f} [{multiplier['low']:.2f}, {multiplier['high']:.2f}]" in readme


def test_rungs_are_shown() -> None:
    output = command("ladder", EXAMPLES / "ladder.yaml")
    row = next(line for line in output.splitlines() if line.startswith("prealign-w64-r20"))
    assert row.split()[1:5] == ["2", "64", "2", "100"]
    assert "24 rungs x 3 seeds = 72 runs" in output
    with pytest.raises(MegalignError, match="has no ladder"):
        command("ladder", REPOSITORY / "examples" / "enclone" / "demo.yaml")


def test_the_ladder_is_one_array_of_training(tmp_path: Path) -> None:
    """Every run of every seed in one array, after the data of all seeds."""
    profile = REPOSITORY / "slurm" / "profiles" / "cpu_cluster.yaml"
    arguments = [
        "submit",
        str(EXAMPLES / "ladder.yaml"),
        "--profile",
        str(profile),
        "--dry-run",
        "--out",
        str(tmp_path),
    ]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    scripts = re.split(r"^# ===== ", done.output, flags=re.MULTILINE)
    training = [text for text in scripts if "--array=0-71" in text and "supervise" in text and text.startswith("train")]
    assert len(training) == 1
    assert training[0].splitlines()[0].endswith("after data-seed0, data-seed1, data-seed2")
    tasks = next(text for text in scripts if text.startswith("train.tasks"))
    assert len(tasks.strip().splitlines()) == 1 + 72
    assert not [text for text in scripts if text.startswith("train+")]


@pytest.fixture(scope="module")
def laddered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished small study as if it were the only rung of a ladder."""
    base = tmp_path_factory.getbasetemp()
    finished = small_study.finished(base)
    folder = StudyFolder(tmp_path_factory.mktemp("ladder") / "small")
    small_study.with_data_of(finished, folder, "joint", "prealign")
    description = read_json(finished.path / "study.json")
    for entry in description["methods"]:
        entry["ladder"] = {"method": entry["name"], "size": "w32", "target_ratio": 5.0}
    write_json(folder.path / "study.json", description)
    return folder.path


def test_a_study_folder_becomes_measurements(laddered: Path) -> None:
    found = read_ladder(laddered)
    assert (found.source_language, found.notes) == ("en", [])
    loss = {(m.method, m.language): m for m in found.measurements if m.metric == "nll_per_token"}
    for method in ("joint", "prealign"):
        run = laddered / "runs" / method / f"seed{small_study.SEED}"
        one = loss[method, "en-clone"]
        scores = [s for s in small_study.json_lines(run / "scores.jsonl") if s["metric"] == "nll_per_token"]
        last = max(score["step"] for score in scores)
        assert one.value == next(s["value"] for s in scores if (s["language"], s["step"]) == ("en-clone", last))
        summary = read_json(run / "run.json")
        assert (one.total_parameters, one.seconds) == (summary["parameters"], summary["wall_seconds"])
        assert one.target_tokens == summary["tokens_seen"]["pretrain"]["en-clone"]
        assert (one.seed, one.target_ratio, one.size) == (small_study.SEED, 5.0, "w32")
        planned = dry_run(load_run(run / "config.yaml"))
        assert one.flops == pytest.approx(planned.flops["pretrain"] + planned.flops["inject"], rel=1e-6)
        assert one.parameters == planned.parameters["non_embedding"]
    assert loss["prealign", "en"].flops > loss["joint", "en"].flops
    assert {m.metric for m in found.measurements} == {"nll_per_token", "clka", "clka_control"}


def test_one_size_of_a_ladder_is_reported_without_curves(laddered: Path, tmp_path: Path) -> None:
    output = command("fit", laddered, "--out", tmp_path / "fit")
    assert "with fewer than three sizes the data say nothing beyond" in output
    assert read_json(tmp_path / "fit" / "fits.json")["curves"] == []
    assert (tmp_path / "fit" / "cost_en-clone.png").exists()


def test_unfinished_runs_and_lost_data_are_said(laddered: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(laddered, folder)
    description = read_json(folder / "study.json")
    write_json(folder / "study.json", {**description, "seeds": [*description["seeds"], 99]})
    shutil.rmtree(folder / "data")
    config = folder / "runs" / "prealign" / f"seed{small_study.SEED}" / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("/store", "/gone"), encoding="utf-8")
    found = read_ladder(folder)
    assert any(note == "2 of 4 runs have not finished; they are left out." for note in found.notes)
    assert any("data cannot be read from here" in note for note in found.notes)
    flops = {m.method: m.flops for m in found.measurements}
    assert flops["prealign"] is None
    assert flops["joint"] is not None


def test_a_study_without_a_ladder_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(DataError, match="is a study without a ladder"):
        read_ladder(small_study.finished(tmp_path_factory.getbasetemp()).path)


def test_nothing_but_a_report_is_replaced(tmp_path: Path) -> None:
    """--out of a ladder's own folder took its runs away."""
    table = read_table(TABLE6)
    (tmp_path / "runs").mkdir()
    kept = tmp_path / "runs" / "weights.bin"
    kept.write_bytes(b"weeks of work")
    found = analyse(table, Question())
    with pytest.raises(ConfigError, match="is no report of scale"):
        write_report(found, tmp_path / "runs", "title")
    assert kept.read_bytes() == b"weeks of work"


@pytest.mark.parametrize("size", [0.0, -1.0, math.nan, math.inf])
def test_sizes_to_predict_are_sizes(size: float) -> None:
    with pytest.raises(ConfigError, match="A prediction is asked for at"):
        Question(predict=(1e7, size))


def test_resamples_have_bounds() -> None:
    for number in (49, 10**9):
        with pytest.raises(DataError, match="50 to 100000 resamples"):
            FitSettings(num_resamples=number)


def test_a_mark_of_byte_order_is_no_fault(tmp_path: Path) -> None:
    rows = [line for line in TABLE6.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    (tmp_path / "table.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    assert read_table(tmp_path / "table.csv") == read_table(TABLE6)
