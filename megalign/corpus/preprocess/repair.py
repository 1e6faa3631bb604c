"""Building again what is damaged in a store, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from megalign.corpus.preprocess.parallel import Workers
from megalign.corpus.preprocess.run import Progress, restore_work, run
from megalign.corpus.store.check import Problem, check_store
from megalign.corpus.store.reader import read_manifest
from megalign.errors import DataError


def repair_store(
    path: Path, workers: Workers, on_progress: Callable[[Progress], None] = lambda progress: None
) -> list[Problem]:
    """Drop the damaged units of a store and build them again from its input; returns what was wrong.

    The input must be where it was and unchanged. A store whose build was deduplicated reads its whole input again.

    Raises:
        DataError: the store was not built by `run`, or its input is gone or has changed.
    """
    problems = check_store(path)
    if not problems:
        return []
    try:
        before: str | None = read_manifest(path)[1]
    except DataError:
        before = None
    settings = restore_work(path)
    for unit in {problem.unit for problem in problems if problem.unit}:
        shutil.rmtree(path / unit, ignore_errors=True)
    run(settings, path, workers, on_progress, kept_tokenizer=True)
    if left := check_store(path):
        raise DataError(f"The store {path} is still damaged: {left[0].message}")
    if before is not None and read_manifest(path)[1] != before:
        raise DataError(
            f"The repaired store {path} is not the one it was.",
            "Its input changed, or its damage was in the manifest.",
            "What was trained on the old one will not resume on this one.",
        )
    return problems
