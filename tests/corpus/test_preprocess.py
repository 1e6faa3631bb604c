"""Preprocessing runs: the store depends on settings and input, on nothing else."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import tokenizers

from megalign.corpus.build import split_of
from megalign.corpus.preprocess import PreprocessSettings, Progress, open_workers, parse_languages, run
from megalign.corpus.preprocess.deduplicate import hash_path, hash_task, load_duplicates, mark_duplicates
from megalign.corpus.preprocess.parts import WORK
from megalign.corpus.preprocess.plan import Task, make_tasks, read_task
from megalign.corpus.preprocess.repair import repair_store
from megalign.corpus.preprocess.run import restore_work
from megalign.corpus.procedural import ProceduralEnglish
from megalign.corpus.readers import BadRow
from megalign.corpus.store import TokenStore, check_store
from megalign.corpus.tokenizer import train_tokenizer
from megalign.errors import ConfigError, DataError, EnvironmentProblem

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import json, sys
from pathlib import Path
from megalign.corpus.preprocess import PreprocessSettings, open_workers, run

if __name__ == "__main__":
    settings = PreprocessSettings.from_json(json.loads(sys.argv[1]))
    with open_workers(int(sys.argv[3])) as workers:
        if workers is not None:
            run(settings, Path(sys.argv[2]), workers)
"""


def texts(stream: str, count: int) -> list[str]:
    return list(islice(ProceduralEnglish(5).documents(stream), count))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two languages of parquet files with several row groups, addresses and collections, and some equal texts."""
    root = tmp_path_factory.mktemp("corpus")
    for language, count in (("en", 90), ("de", 40)):
        (root / language).mkdir()
        for part in range(3):
            made = texts(f"{language}{part}", count)
            made[5] = made[3] if part != 1 else texts(f"{language}0", 4)[3]
            rows = range(count)
            table = pyarrow.table(
                {
                    "text": made,
                    "url": [f"http://{language}.org/{part}/{row}" for row in rows],
                    "source": ["mC4" if row % 2 else "OSCAR-2301" for row in rows],
                }
            )
            parquet.write_table(table, root / language / f"{language}_part_{part:05d}.parquet", row_group_size=20)
    return root


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(texts("tokenizer", 100), 600, path)
    return path


@pytest.fixture
def settings(corpus: Path, tokenizer_path: Path) -> PreprocessSettings:
    return PreprocessSettings(
        str(corpus), str(tokenizer_path), parse_languages("en=12000,de=all"), seed=3, valid_fraction=0.1,
        deduplicate=True, unit_text_bytes=2500,
    )  # fmt: skip


def build(settings: PreprocessSettings, output: Path, workers: int = 1) -> dict:  # type: ignore[type-arg]
    with open_workers(workers) as opened:
        assert opened is not None
        return run(settings, output, opened)


def contents(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


@pytest.fixture
def undisturbed(settings: PreprocessSettings, tmp_path: Path) -> dict[str, bytes]:
    build(settings, tmp_path / "undisturbed")
    return contents(tmp_path / "undisturbed")


def texts_of(store: TokenStore, language: str, split: str) -> list[str]:
    return [store.text(document).text for document in store.documents(language, split)]


def test_a_whole_language_is_what_a_plain_loop_makes_of_it(
    settings: PreprocessSettings, corpus: Path, tmp_path: Path
) -> None:
    counts = build(settings, tmp_path / "s")["counts"]["de"]
    store = TokenStore.open(tmp_path / "s")
    seen: set[str] = set()
    expected: dict[str, list[tuple[str, str, int, str]]] = {"train": [], "valid": []}
    for file in sorted((corpus / "de").iterdir()):
        for row, entry in enumerate(parquet.read_table(file).to_pylist()):
            if entry["text"] not in seen:
                seen.add(entry["text"])
                place = (entry["text"], f"de/{file.name}", row, entry["url"])
                expected[split_of(entry["text"], 0.1)].append(place)
    for split, documents in expected.items():
        assert documents
        stored = list(store.documents("de", split))
        assert [(store.text(d).text, d.source, d.row, d.url) for d in stored] == documents
    assert counts == {"rows": 120, "duplicate": 3, "kept": 117}
    assert check_store(tmp_path / "s") == []
    assert not (tmp_path / "s" / WORK).exists()
    assert not list((tmp_path / "s").rglob(".tmp-*"))


def test_a_budget_is_met_exactly_from_parts_drawn_by_the_seed(settings: PreprocessSettings, tmp_path: Path) -> None:
    taken = []
    for seed in (3, 4):
        build(replace(settings, seed=seed), tmp_path / str(seed))
        store = TokenStore.open(tmp_path / str(seed))
        assert store.num_tokens("en") == 12000
        assert store.window("en", 11999, 1)[0] == store.eos_id
        assert check_store(tmp_path / str(seed)) == []
        taken.append({(d.source, d.row) for d in store.documents("en")})
        held_out = set(texts_of(store, "en", "valid"))
        assert held_out
        assert not held_out & set(texts_of(store, "en", "train"))
    assert taken[0] != taken[1]


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_do_not_change_a_byte(
    settings: PreprocessSettings, undisturbed: dict[str, bytes], tmp_path: Path, workers: int
) -> None:
    build(settings, tmp_path / "s", workers)
    assert contents(tmp_path / "s") == undisturbed


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(script: Path, settings: PreprocessSettings, output: Path, workers: int) -> list[str]:
    script.write_text(RUN)
    return [str(script), json.dumps(settings.to_json()), str(output), str(workers)]


def test_mpi_ranks_do_not_change_a_byte(
    settings: PreprocessSettings, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    mpiexec = Path(sys.executable).parent / "mpiexec"
    launcher = str(mpiexec) if mpiexec.exists() else shutil.which("mpiexec")
    if launcher is None:
        pytest.skip("mpiexec is not installed")
    arguments = command(tmp_path / "run.py", settings, tmp_path / "s", 1)
    subprocess.run(
        [launcher, "-n", "3", sys.executable, "-m", "mpi4py", *arguments], env=environment(), check=True, timeout=120
    )
    assert contents(tmp_path / "s") == undisturbed


@pytest.mark.parametrize(("workers", "kills"), [(1, 3), (2, 3), pytest.param(1, 10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_continued(
    settings: PreprocessSettings, undisturbed: dict[str, bytes], tmp_path: Path, workers: int, kills: int
) -> None:
    output = tmp_path / "s"
    arguments = [sys.executable, *command(tmp_path / "run.py", settings, output, workers)]
    chance = random.Random(kills)
    for _ in range(kills):
        process = subprocess.Popen(arguments, env=environment(), start_new_session=True)
        wanted = len(records(output)) + chance.randint(0, 2)
        while process.poll() is None and not (
            len(records(output)) >= wanted and (output / WORK / "plan.json").exists()
        ):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.03)
        assert process.poll() is None, "every run must be killed, none may end"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(arguments, env=environment(), check=True, timeout=400)
    assert contents(output) == undisturbed


def records(output: Path) -> list[Path]:
    return list((output / WORK / "parts").glob("*.json"))


def test_finished_parts_are_not_built_again(
    settings: PreprocessSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted inside a file, a run keeps the parts it had and goes on behind them."""
    import megalign.corpus.preprocess.parts as parts

    class Stop(Exception):
        pass

    built: list[tuple[int, int]] = []
    original = parts._build_part

    def counting(*arguments: object) -> object:
        if len(built) == 3:
            raise Stop
        built.append((arguments[1].index, arguments[2]))  # type: ignore[attr-defined, arg-type]
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(parts, "_build_part", counting)
    settings = replace(settings, languages=parse_languages("en"), deduplicate=False, unit_text_bytes=3000)
    with pytest.raises(Stop):
        build(settings, tmp_path / "s")
    first = list(built)
    assert first == [(0, 0), (0, 1), (0, 2)]
    built[:] = []
    monkeypatch.setattr(parts, "_build_part", lambda *a: (built.append((a[1].index, a[2])), original(*a))[1])
    build(settings, tmp_path / "s")
    assert not set(first) & set(built)
    build(settings, tmp_path / "whole")
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_a_finished_store_is_left_alone(settings: PreprocessSettings, tmp_path: Path) -> None:
    first = build(settings, tmp_path / "s")
    before = contents(tmp_path / "s")
    assert build(settings, tmp_path / "s") == first
    assert contents(tmp_path / "s") == before
    with pytest.raises(DataError, match="is finished and was made in another way"):
        build(replace(settings, seed=9), tmp_path / "s")


def test_other_settings_do_not_continue_a_store(
    settings: PreprocessSettings, tmp_path: Path, tokenizer_path: Path
) -> None:
    with pytest.raises(DataError, match=r"The input has \d+ training tokens of en, fewer than the budget of 900000"):
        build(replace(settings, languages=parse_languages("en=900000")), tmp_path / "s")
    with pytest.raises(DataError, match="was begun in another way: settings, tasks, languages changed"):
        build(settings, tmp_path / "s")


def test_filters(settings: PreprocessSettings, tmp_path: Path) -> None:
    whole = replace(settings, languages=parse_languages("de"), valid_fraction=0.0, deduplicate=False)
    build(whole, tmp_path / "whole")
    documents = list(TokenStore.open(tmp_path / "whole").documents("de"))
    store = TokenStore.open(tmp_path / "whole")
    for name, changes, keeps in (
        ("short", {"min_length_chars": 300}, lambda d: len(store.text(d).text) >= 300),
        ("url", {"keep_urls": (r"/1/", r"/2/1$")}, lambda d: "/1/" in d.url or d.url.endswith("/2/1")),
        ("url", {"drop_urls": (r"/1/",)}, lambda d: "/1/" not in d.url),
        ("collection", {"collections": ("mC4",)}, lambda d: d.row % 2 == 1),
    ):
        output = tmp_path / str(changes)
        counts = build(replace(whole, **changes), output)["counts"]["de"]
        kept = [(d.source, d.row) for d in documents if keeps(d)]
        assert 0 < len(kept) < len(documents)
        assert [(d.source, d.row) for d in TokenStore.open(output).documents("de")] == kept
        assert counts == {"rows": 120, "kept": len(kept), name: 120 - len(kept)}
    with pytest.raises(DataError, match="No document of de is left"):
        build(replace(whole, min_length_chars=10**6), tmp_path / "none")


def bad_input(root: Path) -> None:
    """Every kind of bad row, beside good ones."""
    root.mkdir()
    good = texts("good", 40)
    lines = [json.dumps({"text": text}) for text in good]
    lines[3:3] = ["{oops", '{"text": ""}', '{"text": null}', '{"words": 1}']
    (root / "a.jsonl").write_text("\n".join(lines) + "\n")
    packed = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in good).encode())
    (root / "b.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (root / "c.txt").write_bytes(b"\xff\xfe bad")
    parquet.write_table(
        pyarrow.table({"text": good}), root / "d.parquet", row_group_size=10, compression="none", use_dictionary=False
    )
    content = bytearray((root / "d.parquet").read_bytes())
    start = parquet.read_metadata(root / "d.parquet").row_group(1).column(0).data_page_offset
    content[start : start + 12] = b"\xff" * 12
    (root / "d.parquet").write_bytes(content)
    (root / "e.parquet").write_bytes(b"PAR1 no footer")


def test_bad_rows_stop_are_skipped_or_quarantined(settings: PreprocessSettings, tmp_path: Path) -> None:
    bad_input(tmp_path / "in")
    base = replace(
        settings, input=str(tmp_path / "in"), languages=parse_languages("en"), deduplicate=False, max_bad_fraction=0.5
    )
    with pytest.raises(DataError, match=r"e.parquet is broken"):
        build(base, tmp_path / "error")
    (tmp_path / "in" / "e.parquet").rename(tmp_path / "e")
    with pytest.raises(DataError, match=r"a.jsonl:3 has no usable text: not JSON"):
        build(base, tmp_path / "error2")
    (tmp_path / "e").rename(tmp_path / "in" / "e.parquet")

    skipped = build(replace(base, on_bad_row="skip"), tmp_path / "skip")["counts"]["en"]
    assert skipped["bad"] == 4 + 1 + 10 + 1 + 1
    assert skipped["kept"] >= 40 + 30
    assert not (tmp_path / "skip" / "quarantine.jsonl").exists()

    assert build(replace(base, on_bad_row="quarantine"), tmp_path / "q")["counts"]["en"] == skipped
    rows = [json.loads(line) for line in (tmp_path / "q" / "quarantine.jsonl").read_text().splitlines()]
    # Small text files are gathered into tasks behind the other files.
    assert [(row["source"], row["row"]) for row in rows] == [
        ("a.jsonl", 3), ("a.jsonl", 4), ("a.jsonl", 5), ("a.jsonl", 6),
        ("b.jsonl.gz", -1), *(("d.parquet", row) for row in range(10, 20)), ("e.parquet", -1), ("c.txt", 0),
    ]  # fmt: skip
    assert rows[0]["content"] == "{oops"
    d_rows = [d.row for d in TokenStore.open(tmp_path / "q").documents("en") if d.source == "d.parquet"]
    assert set(d_rows) <= {*range(10), *range(20, 40)}
    with pytest.raises(DataError, match=r"17 of \d+ rows are bad, more than max_bad_fraction = 0.01 allows"):
        build(replace(base, on_bad_row="skip", max_bad_fraction=0.01), tmp_path / "many")


def test_a_build_stops_early_where_most_rows_are_bad(settings: PreprocessSettings, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    good = json.dumps({"text": "good"}) + "\n"
    for name, bad in (("a", 900), ("b", 0), ("c", 0)):
        (tmp_path / "in" / f"{name}.jsonl").write_text('{"text": ""}\n' * bad + good * (2000 - bad))
    base = replace(settings, input=str(tmp_path / "in"), languages=parse_languages("en"), on_bad_row="skip")
    base = replace(base, deduplicate=False, unit_text_bytes=10**6)
    with pytest.raises(DataError, match=r"900 of 2000 rows are bad, more than max_bad_fraction = 0.2"):
        build(replace(base, max_bad_fraction=0.2), tmp_path / "stopped")
    assert len(records(tmp_path / "stopped")) == 1
    # Within twice the share at first, and within the share in the end, nothing is wrong.
    assert build(replace(base, max_bad_fraction=0.3), tmp_path / "whole")["counts"]["en"]["bad"] == 900


def test_repair_builds_only_what_is_missing(
    settings: PreprocessSettings, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "undisturbed"
    units = [unit["path"] for unit in TokenStore.open(store).manifest["units"]]
    cut = next(u for u in reversed(units) if u.startswith("en/train"))
    for unit in (units[0], cut, units[-1]):
        shutil.rmtree(store / unit)
    restored = restore_work(store)
    assert restored == settings
    build(restored, store)
    assert contents(store) == undisturbed
    shutil.rmtree(store / units[0])
    (store / "build.json").unlink()
    with pytest.raises(DataError, match=r"has no build.json, so its units cannot be built again"):
        restore_work(store)


def test_duplicates_equal_a_set_of_texts_whatever_the_ranges(settings: PreprocessSettings, tmp_path: Path) -> None:
    settings = replace(settings, languages=parse_languages("en"), unit_text_bytes=2000)
    tasks = make_tasks(settings)
    assert len(tasks) > 5
    seen: set[str] = set()
    expected = []
    for task in tasks:
        places = []
        for place, row in enumerate(read_task(task, settings)):
            assert not isinstance(row, BadRow)
            if row.text in seen:
                places.append(place)
            seen.add(row.text)
        expected.append(places)
    assert sum(map(len, expected)) == 3
    indices = [task.index for task in tasks]
    for name, ranges in (("one", 10**6), ("many", 7)):
        for task in tasks:
            hash_task(settings, tmp_path / name, task)
        mark_duplicates(tmp_path / name, [], indices[:2], ranges)
        mark_duplicates(tmp_path / name, indices[:2], indices[2:], ranges)
        assert [load_duplicates(tmp_path / name, i).tolist() for i in indices] == expected
    assert hash_path(tmp_path / "one", 0).read_bytes() == hash_path(tmp_path / "many", 0).read_bytes()
    with pytest.raises(DataError, match="The duplicates of task 999 were not marked"):
        load_duplicates(tmp_path / "one", 999)


def test_tasks_cover_every_row_once(settings: PreprocessSettings, corpus: Path) -> None:
    for size in (1, 3000, 10**9):
        tasks = make_tasks(replace(settings, unit_text_bytes=size))
        assert [task.index for task in tasks] == list(range(len(tasks)))
        rows = [(r.source, r.row) for t in tasks for r in read_task(t, settings)]
        assert len(rows) == len(set(rows)) == 3 * 130
        assert all(Task.from_json(json.loads(json.dumps(task.to_json()))) == task for task in tasks)


def test_small_text_files_share_a_task(settings: PreprocessSettings, tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("word " * 200)
    tasks = make_tasks(replace(settings, input=str(tmp_path), languages=parse_languages("en"), unit_text_bytes=2500))
    assert [len(task.files) for task in tasks] == [3, 3, 3, 1]


def test_progress_is_reported(settings: PreprocessSettings, tmp_path: Path) -> None:
    seen: list[Progress] = []
    with open_workers() as workers:
        assert workers is not None
        run(settings, tmp_path / "s", workers, seen.append)
    english = [p for p in seen if p.language == "en"]
    assert english[-1].tokens >= english[-1].budget_tokens == 12000
    assert [p.tokens for p in english] == sorted(p.tokens for p in english)
    german = [p for p in seen if p.language == "de"]
    assert german[-1].tasks_done == german[-1].tasks


def test_wrong_settings(settings: PreprocessSettings) -> None:
    for changes, message in (
        ({"on_bad_row": "ignore"}, "on_bad_row is 'ignore'"),
        ({"valid_fraction": 1.5}, "valid_fraction is 1.5"),
        ({"max_bad_fraction": -1.0}, "max_bad_fraction is -1.0"),
        ({"unit_text_bytes": 0}, "unit_text_bytes is 0"),
        ({"drop_urls": ("(",)}, "is no regular expression"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(settings, **changes)
    assert PreprocessSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_real_text_of_six_languages(reference_data: Path, tmp_path: Path) -> None:
    """Chinese and Arabic among them; ids are Hugging Face's, text comes back whole."""
    languages = ("en", "de", "ru", "zh", "fr", "ar")
    folder = reference_data / "culturax_like"
    sample = [
        t
        for lang in languages
        for t in parquet.read_table(sorted((folder / lang).iterdir())[0])["text"].to_pylist()[:20]
    ]
    tokenizer = train_tokenizer(sample, 2000, tmp_path / "tokenizer.json")
    settings = PreprocessSettings(
        str(folder), str(tmp_path), parse_languages("en=60000,de=60000,ru=60000,zh=60000,fr=60000,ar")
    )
    build(settings, tmp_path / "s")
    store = TokenStore.open(tmp_path / "s")
    assert check_store(tmp_path / "s") == []
    reference = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    for language in languages:
        for stored in islice(store.documents(language), 5):
            row = parquet.read_table(folder / stored.source)["text"][stored.row].as_py()
            ids = reference.encode(row, add_special_tokens=False).ids
            assert np.array_equal(stored.ids[:-1], ids[: len(stored.ids) - 1])


def test_a_hub_data_set_is_read_as_a_stream(
    settings: PreprocessSettings, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local folder stands in for the hub: `datasets` reads both in the same way."""
    pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    local = replace(settings, languages=parse_languages("de"), deduplicate=False)
    hub = replace(local, input=f"hub:{corpus}")
    build(local, tmp_path / "local")
    build(hub, tmp_path / "hub")
    one, other = TokenStore.open(tmp_path / "local"), TokenStore.open(tmp_path / "hub")
    assert texts_of(other, "de", "train") == texts_of(one, "de", "train")
    assert other.document("de", 0).source == f"hub:{corpus}/de"
    assert other.document("de", 0).url == one.document("de", 0).url
    with pytest.raises(DataError, match="has no xx that can be read"):
        build(replace(hub, languages=parse_languages("xx")), tmp_path / "x")


def test_a_hub_data_set_needs_datasets(settings: PreprocessSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"hub:a/b needs the package datasets. Install megalign\[hf\]"):
        make_tasks(replace(settings, input="hub:a/b"))


def test_a_file_is_read_as_one_language(settings: PreprocessSettings, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for name in (str(tmp_path), str(tmp_path / "a.txt"), str(tmp_path / "*.txt")):
        with pytest.raises(DataError, match=r"a\.txt would be read as en and as de"):
            make_tasks(replace(settings, input=name))
        assert len(make_tasks(replace(settings, input=name, languages=parse_languages("en")))) == 1


def test_what_others_keep_in_the_folder_is_left_alone(settings: PreprocessSettings, tmp_path: Path) -> None:
    settings = replace(settings, languages=parse_languages("de"), deduplicate=False, unit_text_bytes=10**6)
    output = tmp_path / "s"
    (output / "notes" / "deep").mkdir(parents=True)
    (output / "notes" / "deep" / "a").write_text("mine")
    (output / "de").mkdir()
    with pytest.raises(DataError, match=r"is no store that was begun, and has de\. That would be overwritten"):
        build(settings, output)
    assert sorted(path.name for path in output.iterdir()) == ["de", "notes"]
    (output / "de").rmdir()
    build(settings, output)
    assert (output / "notes" / "deep" / "a").read_text() == "mine"
    assert check_store(output) == []


def test_a_finished_store_is_of_its_tokenizer_and_input(
    settings: PreprocessSettings, corpus: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    own, tokenizer = tmp_path / "in", tmp_path / "tokenizer.json"
    shutil.copytree(corpus / "de", own)
    shutil.copyfile(tokenizer_path, tokenizer)
    settings = replace(settings, input=str(own), tokenizer=str(tokenizer), languages=parse_languages("de"))
    settings = replace(settings, deduplicate=False, unit_text_bytes=10**6)
    first = build(settings, tmp_path / "s")
    train_tokenizer(texts("tokenizer", 20), 300, tokenizer)
    with pytest.raises(DataError, match="was made in another way: tokenizer_fingerprint changed"):
        build(settings, tmp_path / "s")
    shutil.copyfile(tokenizer_path, tokenizer)
    (own / "more.txt").write_text("more text")
    with pytest.raises(DataError, match="was made in another way: tasks changed"):
        build(settings, tmp_path / "s")
    shutil.rmtree(own)
    assert build(settings, tmp_path / "s") == first


def test_repair_changes_nothing_where_it_cannot_succeed(
    settings: PreprocessSettings, corpus: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    own, tokenizer, store = tmp_path / "in", tmp_path / "tokenizer.json", tmp_path / "s"
    shutil.copytree(corpus / "de", own)
    shutil.copyfile(tokenizer_path, tokenizer)
    settings = replace(settings, input=str(own), tokenizer=str(tokenizer), languages=parse_languages("de"))
    build(replace(settings, deduplicate=False, unit_text_bytes=10**6), store)
    whole = contents(store)
    damaged = next(store.glob("de/*/urls/c/0"))
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    before = contents(store)
    own.rename(tmp_path / "away")
    with open_workers() as workers:
        assert workers is not None
        with pytest.raises(DataError, match="does not exist or is empty"):
            repair_store(store, workers)
        assert contents(store) == before
        (tmp_path / "away").rename(own)
        (own / "more.txt").write_text("more")
        with pytest.raises(DataError, match=r"is not the one the store .* was built from"):
            repair_store(store, workers)
        assert contents(store) == before
        (own / "more.txt").unlink()
        tokenizer.unlink()  # the store has its own copy
        assert [problem.kind for problem in repair_store(store, workers)] == ["checksum"]
    assert contents(store) == whole


def test_every_row_of_a_damaged_row_group_is_lost_and_counted(settings: PreprocessSettings, tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.parquet"
    path.parent.mkdir()
    parquet.write_table(pyarrow.table({"text": texts("rows", 60)}), path, row_group_size=20)
    column = parquet.read_metadata(path).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    settings = replace(settings, input=str(path.parent), languages=parse_languages("en"), deduplicate=False)
    settings = replace(settings, on_bad_row="quarantine", unit_text_bytes=10**6)
    with pytest.raises(DataError, match="20 of 60 rows are bad"):
        build(replace(settings, max_bad_fraction=0.3), tmp_path / "s")
    counts = build(replace(settings, max_bad_fraction=0.4), tmp_path / "t")["counts"]["en"]
    assert counts == {"bad": 20, "kept": 40, "rows": 60}
    lines = (tmp_path / "t" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == list(range(20, 40))


def test_two_processes_do_not_build_one_store(settings: PreprocessSettings, tmp_path: Path) -> None:
    settings = replace(settings, languages=parse_languages("de"), deduplicate=False, unit_text_bytes=10**6)
    met: list[str] = []

    def again(_: Progress) -> None:
        # A lock belongs to an open file, so that a second run in this process meets it like one in another process.
        with pytest.raises(DataError, match="Another process is building the store") as raised:
            build(settings, tmp_path / "s")
        met.append(raised.value.fix)

    with open_workers() as workers:
        assert workers is not None
        run(settings, tmp_path / "s", workers, again)
    assert met
    assert check_store(tmp_path / "s") == []
