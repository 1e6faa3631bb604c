"""The commands of examples/pretraining/README.md, as they stand there, on small text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from small_study import clean_environment, json_lines

from megalign.corpus.procedural import ProceduralEnglish

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "examples" / "pretraining" / "README.md").read_text(encoding="utf-8")
WHOLE, SMALL = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: `culturax` with English and, named German, English backwards; `dictionaries`; the repository's folders."""
    root = tmp_path_factory.mktemp("pretraining")
    words: Counter[str] = Counter()
    for language, seed in (("en", 0), ("de", 1)):
        texts = list(islice(ProceduralEnglish(seed).documents("train"), 9000 if language == "en" else 1200))
        (root / "culturax" / language).mkdir(parents=True)
        words.update(word for text in texts for word in re.findall(r"[a-z]+", text))
        if language == "de":
            texts = [re.sub(r"[A-Za-z]+", lambda word: word[0][::-1], text) for text in texts]
        parquet.write_table(
            pyarrow.table({"text": texts}), root / "culturax" / language / f"{language}_part_00000.parquet"
        )
    (root / "dictionaries").mkdir()
    lines = (f"{word} {word[::-1]}\n" for word, _ in words.most_common(500))
    (root / "dictionaries" / "en-de.txt").write_text("".join(lines), encoding="utf-8")
    for name in ("examples", "tools", "slurm"):
        (root / name).symlink_to(REPOSITORY / name)
    return root


def execute(commands: str, folder: Path) -> str:
    """What commands print; all of them must end well."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=folder, env=clean_environment(PATH=path, PYTHONPATH=str(REPOSITORY)),
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_small_run(folder: Path) -> None:
    told = execute(SMALL, folder)
    assert "en: 600,000 tokens (train)" in told
    assert "de: 60,000 tokens (train)" in told
    assert "perplexity" in told
    steps = [line["step"] for line in json_lines(folder / "runs" / "small" / "metrics.jsonl")]
    assert steps[-1] == 100
    assert "has finished training: nothing to do" in execute(SMALL, folder)


def test_the_large_run_is_counted_planned_and_rendered(folder: Path) -> None:
    (folder / "data" / "en-de").symlink_to(folder / "data" / "small")
    lines = [line for line in WHOLE.splitlines() if line.startswith("megalign") and "run.yaml" in line]
    dry_run, plan, train, submit = lines
    assert train == "megalign train examples/pretraining/run.yaml"
    counted = execute(f"{dry_run} inject.entries_per_step=400", folder)  # the small table has no 2048
    assert "1024 windows of 1024 = 1,048,576 tokens a step" in counted
    assert "8 ranks: tensor 1 x context 1 x data 8 x pipeline 1" in counted
    assert "layouts that fit" in execute(plan, folder)
    script = execute(f"{submit} --dry-run inject.entries_per_step=400", folder)
    assert "megalign.study.worker train" in script
