"""The tools as users run them: help, a whole path from text to a checked store, errors without tracebacks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from tool_command import tool

from megalign.corpus.procedural import ProceduralEnglish
from megalign.corpus.store import TokenStore

ROOT = Path(__file__).resolve().parents[2]
TOOLS = [
    "preprocess_culturax", "train_tokenizer", "count_words", "clone_corpus", "check_store", "inspect_store",
    "merge_stores", "archive_store", "score_clika",
    "score_consistency", "build_crossin", "make_knowledge", "make_facts", "build_table", "inspect_table",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for language in ("en", "de"):
        (root / language).mkdir()
        texts = islice(ProceduralEnglish(0).documents(language), 80)
        lines = (json.dumps({"text": text, "url": f"http://{row}"}) + "\n" for row, text in enumerate(texts))
        (root / language / "a.jsonl").write_text("".join(lines))
    return root


@pytest.mark.parametrize("name", TOOLS)
def test_help_teaches(name: str) -> None:
    shown = tool(name, "--help")
    assert f"python tools/{name}.py" in shown
    assert "Usage:" in shown


@pytest.mark.parametrize("name", TOOLS)
def test_tools_are_thin(name: str) -> None:
    assert len((ROOT / "tools" / f"{name}.py").read_text().splitlines()) <= 60


def test_from_text_to_a_checked_store(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = tool("train_tokenizer", "--input", corpus, "--languages", "en,de", "--vocab-size", 500, "--output", "t.json")
    assert "500 tokens" in said
    arguments = ("--input", corpus, "--tokenizer", "t.json", "--valid-fraction", 0.1)
    tool("preprocess_culturax", *arguments, "--output", "s", "--languages", "en=3000,de=all", "--archive", "packed")
    store = TokenStore.open(tmp_path / "s")
    assert store.num_tokens("en") == 3000
    assert store.num_documents("de") + store.num_documents("de", "valid") == 80
    assert "Nothing is wrong." in tool("check_store", "s")

    shown = tool("inspect_store", "s")
    assert "3000" in shown
    assert "| " in shown
    shown = tool("inspect_store", "s", "--language", "de", "--document", 2)
    assert "de/a.jsonl row " in shown
    assert "http://" in shown
    assert "document 0, tokens 0 to " in tool("inspect_store", "s", "--language", "en", "--sample", 0, "--length", 100)

    tool("clone_corpus", "--store", "s", "--language", "en", "--clone", "en-clone", "--tokens", 1e3, "--output", "c")
    assert "en-clone (train): 1000 tokens" in tool("merge_stores", "s", "c", "--output", "all")
    assert "Nothing is wrong." in tool("check_store", "all")
    tool("archive_store", "packed", "--restore", "--output", "back")
    assert (tmp_path / "back/manifest.json").read_bytes() == (tmp_path / "s/manifest.json").read_bytes()

    shutil.rmtree(tmp_path / "s" / "de")
    damaged = tool("check_store", "s", code=3)
    assert "missing_unit: de/train-000001-00000" in damaged
    assert "Repaired." in tool("check_store", "s", "--repair")
    assert "Nothing is wrong." in tool("check_store", "s")
    assert TokenStore.open(tmp_path / "s").fingerprint == store.fingerprint

    tool("count_words", "--input", corpus, "--languages", "en", "--output", "counts", "--lowercase")
    first = (tmp_path / "counts/en.tsv").read_text().splitlines()[0]
    texts = (json.loads(line)["text"] for line in (corpus / "en/a.jsonl").read_text().splitlines())
    (word, count), *_ = Counter(word for text in texts for word in re.findall(r"\w+", text.lower())).most_common(1)
    assert first == f"{word}\t{count}"
    tool("count_words", "--merge", "counts/en.tsv", "--merge", "counts/en.tsv", "--output", "twice.tsv")
    assert (tmp_path / "twice.tsv").read_text().splitlines()[0] == f"{word}\t{2 * count}"


def test_errors_have_a_fix_and_a_code(corpus: Path, tmp_path: Path) -> None:
    arguments = ("--output", tmp_path / "s", "--tokenizer", tmp_path / "none.json")
    said = tool("preprocess_culturax", "--input", corpus, "--languages", "en=x", *arguments, code=2)
    assert "error: The language 'en=x' cannot be read." in said
    assert "  Write en=2e6" in said
    said = tool("preprocess_culturax", "--input", corpus, "--languages", "en", *arguments, code=3)
    assert "none.json does not exist" in said
    assert "  Give --input, or --existing." in tool("train_tokenizer", "--output", tmp_path / "t.json", code=2)
    assert "  Give --input, or --merge." in tool("count_words", "--output", tmp_path / "t.tsv", code=2)
    assert "There is no finished token store" in tool("inspect_store", tmp_path, code=3)
    assert "missing_manifest" in tool("check_store", tmp_path, code=3)
    assert "has no build.json" in tool("check_store", tmp_path, "--repair", code=3)


def test_an_existing_tokenizer_is_taken_unchanged(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    tool(
        "train_tokenizer",
        "--input",
        corpus,
        "--languages",
        "en",
        "--vocab-size",
        300,
        "--output",
        tmp_path / "hf/tokenizer.json",
    )
    tool("train_tokenizer", "--existing", tmp_path / "hf", "--output", tmp_path / "t.json")
    assert (tmp_path / "t.json").read_bytes() == (tmp_path / "hf/tokenizer.json").read_bytes()


def test_an_unusual_end_of_text_is_named(corpus: Path, tmp_path: Path) -> None:
    given, store = tmp_path / "t.json", tmp_path / "store"
    tool("train_tokenizer", "--input", corpus, "--vocab-size", 300, "--output", given)
    given.write_text(given.read_text().replace("<|endoftext|>", "<stop>"))
    made = ("preprocess_culturax", "--input", corpus, "--languages", "de", "--tokenizer", given, "--output", store)
    assert "Name it: eos_token, --eos-token." in tool(*made, code=3)
    said = tool(*made, "--eos-token", "<stop>")
    opened = TokenStore.open(store)
    assert f"de: {opened.num_tokens('de'):,} tokens (train), 80 kept, 80 rows" in said
    assert opened.vocabulary.tokenizer.eos_token == "<stop>"
    assert "Nothing is wrong." in tool("check_store", store)
    shutil.rmtree(next(path for path in (store / "de").iterdir()))
    tool("check_store", store, "--repair")
    assert TokenStore.open(store).fingerprint == opened.fingerprint


def test_corpus_and_tools_import_neither_torch_nor_megatron() -> None:
    code = """
import importlib, pathlib, pkgutil, sys
sys.path.insert(0, "tools")
import megalign.corpus
for found in pkgutil.walk_packages(megalign.corpus.__path__, "megalign.corpus."):
    importlib.import_module(found.name)
for path in pathlib.Path("tools").glob("*.py"):
    if path.stem in sys.argv[1].split(","):
        importlib.import_module(path.stem)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "megatron", "transformers", "datasets"}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, ",".join(TOOLS)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_facts_replace_facts_alone(tmp_path: Path) -> None:
    out = tmp_path / "facts"
    tool("make_facts", "--out", out, "--languages", "en", "--times", "1")
    (out / "notes").write_text("mine")
    assert "is no folder of facts alone" in tool("make_facts", "--out", out, "--languages", "en", code=2)
    assert (out / "notes").read_text() == "mine"


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    assert "--tokens is nan" in tool("clone_corpus", "--store", tmp_path, "--output", "c", "--tokens", "nan", code=2)
    made = ("--input", tmp_path, "--output", tmp_path / "t.json", "--megabytes", "inf")
    assert "--megabytes is inf" in tool("train_tokenizer", *made, code=2)
