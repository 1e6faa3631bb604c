"""The report as a whole: the page, the console table, the figures, and that they are the same every time."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from report_study import METHODS, STEPS, study_json, write_lines, write_run, write_study
from rich.console import Console

from megalign.errors import DataError
from megalign.study.report import Report, build_report, console_table
from megalign.study.report.drawing import LABEL_GAP, Line, draw_lines, log_ticks, plain, short_number, spread
from megalign.study.report.figures import NUM_LOSS_BINS, _binned, _lines, _score_points, draw_figures
from megalign.study.report.results import load


class Page(HTMLParser):
    """Tags with their attributes, the text, and the tables as lists of rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.caption = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)
        if tag == "figcaption":
            self.caption = ""
        elif tag == "table":
            self.tables[self.caption] = []
        elif tag == "tr":
            self.tables[self.caption].append([])
        elif tag in ("td", "th"):
            self.tables[self.caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if "figcaption" in self.open:
            self.caption += data
        if "td" in self.open or ("tbody" in self.open and "th" in self.open):
            self.tables[self.caption][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def page_of(report: Report) -> Page:
    page = Page(report.page.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def printed(report: Report, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(console_table(report))
    return stream.getvalue()


def test_the_same_study_gives_the_same_bytes_anywhere(tmp_path: Path) -> None:
    first = build_report(write_study(tmp_path / "a"))
    second = build_report(write_study(tmp_path / "b" / "deeper"))
    assert files_of(first.folder) == files_of(second.folder)
    assert files_of(build_report(tmp_path / "a").folder) == files_of(first.folder)
    assert {"index.html", "summary.csv", "aggregate.csv", "curves.csv", "perplexity_en-clone.png"} <= set(
        files_of(first.folder)
    )


def test_the_page_stands_alone_and_shows_every_figure_with_words(tmp_path: Path) -> None:
    report = build_report(write_study(tmp_path))
    page = page_of(report)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    embedded = {base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,")) for image in images}
    assert embedded == {path.read_bytes() for path in report.folder.glob("*.png")}
    assert len(images) == len(embedded) == 12
    assert all(len(image["alt"] or "") > 20 for image in images)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert all((attributes.get(name) or "#").startswith(("#", "data:")) for name in ("href", "src"))
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {"#" + str(anchor) for anchor in anchors} == {a["href"] for tag, a in page.tags if tag == "a"}


def test_the_main_table_shows_what_the_files_say(tmp_path: Path) -> None:
    report = build_report(write_study(tmp_path))
    rows = {row[0]: row[1:] for row in page_of(report).tables["Language modelling and knowledge"][2:]}
    assert list(rows) == ["Joint", "PreAlign", "Only target"]
    mean = np.mean([score.value or 0 for score in report.by_seed("prealign", "perplexity", "en-clone").values()])
    shown = rows["PreAlign"]
    assert shown[:4] == ["2/2", "405.0", "20.2", "38.4"]
    assert shown[5].split()[0] == f"{mean:.1f}"
    item = report.get("prealign", "clka", "en-clone")
    assert item is not None
    assert item.low is not None
    assert item.high is not None
    assert shown[9] == f"{100 * (item.mean or 0):.1f} [{100 * item.low:.1f}, {100 * item.high:.1f}]"
    assert len(shown) == 11


def test_words_and_compute_stand_beside_the_text_that_was_read(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    for method, words, flops in (("joint", 0, 2e12), ("prealign", 81_000, 2.5e12)):
        for seed in (0, 1):
            path = folder / "runs" / method / f"seed{seed}" / "run.json"
            record = json.loads(path.read_text())
            record["tokens_seen"]["words"] = words + 1000 * seed
            path.write_text(json.dumps({**record, "training_flops": flops}))
    page = page_of(build_report(folder))
    rows = {row[0]: row[1:] for row in page.tables["Language modelling and knowledge"][2:]}
    assert rows["PreAlign"][2:6] == ["20.2", "38.4", "81.5", "1.25"]
    assert rows["Joint"][2:6] == ["20.2", "0.0", "0.5", "1.00"]
    assert rows["Only target"][4:6] == ["–", "–"]
    assert "compute is training FLOPs as a ratio to Joint's" in page.text
    read = {tuple(row[:2]): row[2:] for row in page.tables["What every run read"][2:]}
    assert read["PreAlign", "1"][2:4] == ["38,400", "82,000"]


def test_sentences_have_a_table_by_level(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    for method, seed in (("joint", 0), ("joint", 1), ("prealign", 0), ("prealign", 1)):
        path = folder / "runs" / method / f"seed{seed}" / "scores.jsonl"
        for level in (0, 1):
            for place, name in enumerate(("into", "from", "into_centred", "from_centred")):
                line = {
                    "metric": f"sentence_retrieval_{name}",
                    "language": "en-clone",
                    "level": level,
                    "step": STEPS[-1],
                    "value": 0.1 * place + 0.02 * level + 0.01 * seed,
                    "low": 0.0,
                    "high": 1.0,
                    "n": 500,
                    "unit": "share",
                }
                with path.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
    page = page_of(build_report(folder))
    table = page.tables["en and en-clone sentences by level, %"]
    assert "into, centred" in page.text
    assert table[3][:5] == ["1 output", "2.5", "12.5", "22.5", "32.5"]
    assert len(table[3]) == 1 + 4 * 3
    assert "nearest of 500 by the cosine" in page.text
    assert "chance is 0.2 %" in page.text
    assert not any("Sentence retrieval" in row[0] for row in page.tables["Metrics without a table of their own"])


def test_all_the_tables_are_there(tmp_path: Path) -> None:
    page = page_of(build_report(write_study(tmp_path)))
    assert list(page.tables) == [
        "Language modelling and knowledge",
        "Each method against Joint",
        "What each part gives",
        "Every seed",
        "Knowledge by total likelihood and per token",
        "en and en-clone words by level",
        "Probability lost to the target language",
        "Metrics without a table of their own",
        "What every run read",
        "How every run was made",
        "Settings",
        "English and En-Clone, as printed (CLKA and ZS-CLT in %)",
    ]
    assert page.tables["What each part gives"][3][:3] == ["PreAlign", "✓", "✓"]
    assert page.tables["What each part gives"][2][:3] == ["Joint", "no", "no"]
    levels = page.tables["en and en-clone words by level"]
    assert [row[0] for row in levels[2:]] == ["0 embedding", "1 layer", "2 layer", "3 layer", "4 output"]
    assert all(len(row) == 10 for row in levels[1:])
    assert ["peak memory", "", "", "GiB", "1.5 [1.5, 1.5]", "1.5 [1.5, 1.5]", "1.5"] in page.tables[
        "Metrics without a table of their own"
    ]
    assert page.tables["What every run read"][-1][:4] == ["Only target", "1", "not started", "–"]
    assert page.tables["How every run was made"][1] == [
        "Joint",
        "0",
        "988,928",
        "0.1",
        "1 process",
        "NVIDIA H100",
        "6,120",
        "1 min 15 s",
    ]
    assert page.tables["How every run was made"][2][4] == "tensor 2, sequence parallel"
    assert "Made with megalign 0.1.0, torch 2.13.0; or with megalign 0.1.0, torch 2.14.0." in page.text
    assert ["data.sources", '["en", "en-clone"]'] in page.tables["Settings"]
    published = page.tables["English and En-Clone, as printed (CLKA and ZS-CLT in %)"]
    assert ["PreAlign", "15.9", "16.5", "80.1", "79.3", "90.3"] in published
    assert "Only target, seed 1: not started" in page.text


EVIL = "<script>alert('x')<script>&\"[red]$x_{1}$"


def test_what_comes_from_files_is_text_and_never_markup(tmp_path: Path) -> None:
    methods: list[dict[str, Any]] = [
        {"name": "<script>", "title": "", "description": EVIL, "traits": [EVIL]},
        {"name": "prealign", "title": EVIL, "description": EVIL},
    ]
    content = study_json(
        methods, [0, 1], name=EVIL, title=EVIL, description=EVIL, settings={EVIL: EVIL}, clone_of={EVIL: EVIL}
    )
    (tmp_path / "study.json").write_text(json.dumps(content))
    for method in methods:
        run = write_run(tmp_path, method["name"], 0)
        with (run / "scores.jsonl").open("a") as stream:
            stream.write(
                json.dumps({"metric": EVIL, "language": EVIL, "step": STEPS[-1], "value": 1.0, "unit": EVIL}) + "\n"
            )
        with (run / "metrics.jsonl").open("a") as stream:
            stream.writelines(json.dumps({"stage": EVIL, "step": step, "loss": 1.0}) + "\n" for step in range(3))
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(
            json.dumps({**record, "layout": {EVIL: EVIL}, "device": EVIL, "versions": {EVIL: EVIL}})
        )
        write_run(tmp_path, method["name"], 1, status=EVIL)
    report = build_report(tmp_path)
    page = page_of(report)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(EVIL) > 12
    assert all(path.parent == report.folder for path in report.folder.rglob("*"))


def test_a_study_without_finished_runs_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(study_json()))
    report = build_report(tmp_path)
    assert "No run has finished" in page_of(report).text
    assert len(files_of(report.folder)["summary.csv"].splitlines()) == 1
    assert not list(report.folder.glob("*.png"))
    assert "0/2" in printed(report)
    write_run(tmp_path, "prealign", 0, status="stopped", steps=STEPS[:3])
    report = build_report(tmp_path)
    page = page_of(report)
    assert "PreAlign, seed 0: stopped, scores up to step 300" in page.text
    assert "PreAlign (unfinished) from" in " ".join(str(a["alt"]) for tag, a in page.tags if tag == "img")
    assert len(files_of(report.folder)["summary.csv"].splitlines()) == 1


def test_a_study_of_real_languages_without_facts(tmp_path: Path) -> None:
    methods = [{"name": "joint"}, {"name": "prealign"}]
    languages = ["en", "de", "zh"]
    (tmp_path / "study.json").write_text(
        json.dumps(study_json(methods, [0], languages=languages, clone_of={}, facts=False))
    )
    for method, factor in (("joint", 1.0), ("prealign", 0.8)):
        run = write_run(tmp_path, method, 0)
        lines = [
            {
                "metric": "perplexity",
                "language": language,
                "level": None,
                "step": 10,
                "value": 50 * factor,
                "unit": "perplexity",
            }
            for language in languages
        ]
        write_lines(run / "scores.jsonl", lines)
    report = build_report(tmp_path)
    page = page_of(report)
    assert page.tables["Real languages, as printed"][3] == ["150M, PreAlign", "91.1", "39.8", "45.7", "48.2"]
    assert "English and En-Clone" not in page.text
    assert "What each part gives" not in page.tables
    assert "No finished run has alignment scores." in page.text
    assert "CLKA on" not in page.text
    assert [row[0] for row in page.tables["Each method against joint"][2:]] == ["prealign"]


def test_a_failed_report_leaves_the_old_one(tmp_path: Path) -> None:
    before = files_of(build_report(write_study(tmp_path)).folder)
    (tmp_path / "runs/joint/seed0/scores.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"scores.jsonl, line 1: metric: Field required"):
        build_report(tmp_path)
    assert files_of(tmp_path / "report") == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_console_table_fits_eighty_columns(tmp_path: Path) -> None:
    report = build_report(write_study(tmp_path))
    text = printed(report)
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    lines = [line.split() for line in text.splitlines()]
    item = report.get("prealign", "clka", "en-clone")
    assert item is not None
    row = [words for words in lines if words[:2] == ["PreAlign", "2/2"]][1]
    assert row[2] == "20.2"
    assert row[5] == f"{100 * (item.mean or 0):.1f}"
    assert "1 of 6 runs have not finished." in " ".join(text.split())


def test_the_console_reads_no_markup_in_names(tmp_path: Path) -> None:
    methods = [{"name": "joint", "title": "[red]A[/red]"}, {"name": "prealign", "title": "[/bold]"}]
    (tmp_path / "study.json").write_text(json.dumps(study_json(methods, [0], title="[b]T[/b]")))
    text = printed(load(tmp_path))
    assert text.splitlines()[0].strip() == "[b]T[/b]"
    assert text.count(" [red]A[/red] ") == text.count(" [/bold] ") == 2


def test_figures_are_pictures_of_the_stated_size_with_something_in_them(tmp_path: Path) -> None:
    for figure in draw_figures(load(write_study(tmp_path))):
        picture = matplotlib.image.imread(io.BytesIO(figure.png), format="png")
        assert picture.shape[1] == 864
        assert picture.shape[0] > 250
        assert 0.005 < (picture[..., :3].min(axis=2) < 0.95).mean() < 0.5


def test_names_at_the_ends_of_lines_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = []

    def keep(canvas: Canvas) -> bytes:
        renderer = FigureCanvasAgg(canvas).get_renderer()
        width, height = canvas.get_size_inches() * canvas.dpi
        for text in canvas.axes[0].texts:
            box = text.get_window_extent(renderer)
            assert box.x1 <= width
            assert 0 <= box.y0 < box.y1 <= height
            boxes.append(box)
        return b""

    monkeypatch.setattr("megalign.study.report.drawing.png_bytes", keep)
    flat = (1.0, 1.0)
    lines = [
        Line(f"A METHOD WITH A WIDE NAME {place} and more", place, (0.0, 10.0), flat, flat, flat) for place in range(12)
    ]
    draw_lines("title", "y", lines)
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) == 12
    assert all(lower.y1 <= upper.y0 for lower, upper in itertools.pairwise(boxes))


@given(st.lists(st.floats(-0.2, 1.2), min_size=1, max_size=20))
def test_spread_keeps_the_order_and_the_gaps(wanted: list[float]) -> None:
    placed = spread(wanted, LABEL_GAP)
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], index))
    ordered = [placed[index] for index in order]
    assert all(second - first >= LABEL_GAP - 1e-9 for first, second in itertools.pairwise(ordered))
    if len(wanted) <= 16:
        assert min(placed) >= -1e-9
        assert max(placed) <= 1 + 1e-9
    apart = all(b - a >= LABEL_GAP for a, b in zip(sorted(wanted), sorted(wanted)[1:], strict=False))
    if apart and all(0 <= height <= 1 for height in wanted):
        assert placed == pytest.approx(wanted)


@given(low=st.floats(1.0, 1e6), factor=st.floats(1.05, 1e6))
def test_log_ticks_are_few_round_and_within(low: float, factor: float) -> None:
    high = low * factor
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))
    assert low * (1 - 1e-9) <= ticks[0]
    assert ticks[-1] <= high * (1 + 1e-9)
    if factor >= 4:
        mantissas = {round(tick / 10 ** math.floor(math.log10(tick) + 1e-9), 6) for tick in ticks}
        assert mantissas <= {1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9}
    else:
        steps = {round(second - first, 6) for first, second in itertools.pairwise(ticks)}
        assert len(steps) == 1
        assert f"{steps.pop():e}"[0] in "125"


def test_log_ticks_by_hand() -> None:
    assert log_ticks(17.2, 22.9) == [18, 19, 20, 21, 22]
    assert log_ticks(30, 110) == [40, 60, 80, 100]
    assert log_ticks(10, 300000) == [10, 100, 1000, 10000, 100000]
    assert log_ticks(10, 90) == [10, 20, 30, 50, 70]


def test_text_for_figures_is_plain() -> None:
    assert plain("$a$\nb", 20) == r"\$a\$ b"
    assert plain("x" * 30, 24) == "x" * 23 + "…"
    assert [short_number(value) for value in (1.5, 20, 5000, 20000, 1e6, 2e9)] == [
        "1.5",
        "20",
        "5,000",
        "20k",
        "1M",
        "2B",
    ]


def test_training_losses_are_means_over_equal_stretches() -> None:
    losses = {step: float(step % 7) for step in range(1000)}
    width = math.ceil(1000 / NUM_LOSS_BINS)
    expected = {}
    for start in range(0, 1000, width):
        some = [losses[step] for step in range(start, min(start + width, 1000))]
        expected[float(start + width - 1)] = sum(some) / len(some)
    assert _binned(losses) == pytest.approx(expected)
    assert _binned({}) == {}
    assert _binned({1: 2.0, 5: 4.0}) == {1.0: 2.0, 5.0: 4.0}


def test_curves_average_only_over_steps_that_all_runs_have(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(study_json(METHODS[:1], [0, 1])))
    for seed, steps in ((0, (0, 10, 20)), (1, (0, 20))):
        run = write_run(tmp_path, "joint", seed)
        lines = [
            {
                "metric": "perplexity",
                "language": "en",
                "level": None,
                "step": step,
                "value": 100.0 * (seed + 1),
                "unit": "perplexity",
            }
            for step in steps
        ]
        write_lines(run / "scores.jsonl", lines)
    report = load(tmp_path)
    line = _lines(report, _score_points("perplexity", "en", None))[0]
    assert (line.steps, line.mean, line.lowest, line.highest) == (
        (0.0, 20.0),
        (150.0, 150.0),
        (100.0, 100.0),
        (200.0, 200.0),
    )
