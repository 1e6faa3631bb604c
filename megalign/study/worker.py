"""The process that computes: `python -m megalign.study.worker data|run|train|eval ...`, started by the study or the CLI.

It prints errors a user can act on without a traceback and exits with their code.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from megalign.cluster.ranks import Rank, discover
from megalign.config import RunConfig, StudyConfig, load_run, load_study
from megalign.errors import MegalignError


def _with_engine(config: RunConfig, work: Callable[[RunConfig, Rank], None]) -> None:
    """Join the process group of the run's layout, work, leave."""
    import torch

    from megalign.config.layout import Layout
    from megalign.engine import groups

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    rank = discover()
    with tempfile.TemporaryDirectory() as folder:
        groups.start(
            Layout(config.parallel),
            rank=rank.rank,
            world_size=rank.world_size,
            local_rank=rank.local_rank,
            init_method=rank.init_method or f"file://{folder}/rendezvous",
        )
        try:
            work(config, rank)
        finally:
            groups.stop()


def _train(config: RunConfig, rank: Rank) -> None:
    from megalign.evaluation.run import build_probe
    from megalign.training.run import train

    train(config, rank, build_probe(config, rank))


def _evaluate(config: RunConfig, rank: Rank) -> None:
    from megalign.evaluation.run import evaluate

    evaluate(config, rank)


def _train_and_evaluate(config: RunConfig, rank: Rank) -> None:
    _train(config, rank)
    _evaluate(config, rank)


def _study_run(study: StudyConfig, folder: Path, label: str, seed: int) -> RunConfig:
    from megalign.study.expand import StudyFolder, run_config

    method = next(method for method in study.methods if method.label == label)
    return run_config(study, StudyFolder(folder), method, seed)


def work(arguments: list[str]) -> None:
    """Do what the arguments say.

    `train CONFIG [OVERRIDE...]`, `eval CONFIG [OVERRIDE...]`: a run. `data STUDY SEED`, `run STUDY LABEL SEED`: a step
    of a study, STUDY being its folder.
    """
    kind, path, *rest = arguments
    if kind == "train":
        _with_engine(load_run(Path(path), rest), _train)
    elif kind == "eval":
        _with_engine(load_run(Path(path), rest), _evaluate)
    elif kind == "data":
        from megalign.study.data import build_data
        from megalign.study.expand import StudyFolder

        folder = StudyFolder(Path(path))
        build_data(load_study(folder.config), int(rest[0]), folder.data(int(rest[0])))
    elif kind == "run":
        study = load_study(Path(path) / "study.yaml")
        _with_engine(_study_run(study, Path(path), rest[0], int(rest[1])), _train_and_evaluate)
    else:
        raise ValueError(f"unknown work {kind!r}")


def report_error(error: MegalignError, rank: int = 0) -> int:
    """Print an error for a person; the exit code."""
    if rank == 0 or error.exit_code != 75:
        lines = [f"error: {error.what}", *(f"  {part}" for part in (error.why, error.fix) if part)]
        print("\n".join(lines), file=sys.stderr, flush=True)
    return error.exit_code


def main() -> None:
    """Entry point of the process."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("megatron").setLevel(logging.ERROR)
    try:
        work(sys.argv[1:])
    except MegalignError as error:
        code = report_error(error, int(os.environ.get("RANK", "0")))
        sys.stdout.flush()
        # Another rank may hang in a collective that this one left: do not wait for it in the interpreter's shutdown.
        os._exit(code)


if __name__ == "__main__":
    main()
