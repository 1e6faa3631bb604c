"""The process that computes: `python -m megalign.study.worker train|eval|data|run|... ...`, started by the study or the CLI.

It prints errors a user can act on without a traceback and exits with their code.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from megalign.cluster.local import stop_with_launcher
from megalign.cluster.ranks import Rank, discover
from megalign.config import RunConfig, StudyConfig, load_run, load_study
from megalign.console import outlive_reader
from megalign.errors import MegalignError, StoppedOnRequest, report_error


class _Leave(BaseException):
    """Passes through `except Exception` in whatever is running."""


@contextmanager
def leaving_on_request() -> Iterator[None]:
    """While active, a request to stop ends the work at once with code 75: there is nothing to save yet, or any more.

    Training and measuring put handlers of their own in place that wait for a step's end.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise _Leave(signal.Signals(number).name)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        yield
    except _Leave as request:
        raise StoppedOnRequest(f"Asked to stop by {request}.", fix="Run the same command again to continue.") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _with_engine(config: RunConfig, work: Callable[[RunConfig, Rank], None]) -> None:
    """Join the process group of the run's layout, work, leave."""
    import torch

    from megalign.config.layout import Layout
    from megalign.engine import groups
    from megalign.engine.device import out_of_memory

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
        except (MemoryError, RuntimeError) as error:
            problem = out_of_memory(error)
            if problem is None:
                raise
            raise problem from error
        finally:
            groups.stop()


def _train(config: RunConfig, rank: Rank) -> None:
    from megalign.evaluation.run import build_probe
    from megalign.training.run import train

    train(config, rank, build_probe(config, rank))


def _evaluate(config: RunConfig, rank: Rank) -> None:
    from megalign.evaluation.run import evaluate

    evaluate(config, rank)


def _evaluate_and_tell(config: RunConfig, rank: Rank) -> None:
    from megalign.evaluation.run import evaluate
    from megalign.evaluation.scores import told
    from megalign.training.run import RunFolder

    lines = told(evaluate(config, rank))
    if rank.rank == 0:
        print("\n".join([*lines, f"scores: {RunFolder(Path(config.folder)).scores}"]), flush=True)


def _train_and_evaluate(config: RunConfig, rank: Rank) -> None:
    _train(config, rank)
    _evaluate(config, rank)


def _resharding(source: Path, target: Path, with_optimizer: bool) -> Callable[[RunConfig, Rank], None]:
    def reshard(config: RunConfig, rank: Rank) -> None:
        from megalign.engine.checkpoint.reshard import reshard

        reshard(config, source, target, with_optimizer=with_optimizer)

    return reshard


def _harness(config: RunConfig, rank: Rank, settings: str) -> None:
    from megalign.evaluation.harness_run import HarnessSettings, evaluate_tasks

    evaluate_tasks(config, HarnessSettings.model_validate_json(settings))


def _inference(config: RunConfig, rank: Rank, settings: str) -> None:
    from megalign.config.tasks import NliConfig
    from megalign.evaluation.inference import evaluate_inference

    evaluate_inference(config, rank, NliConfig.model_validate_json(settings))


def _study_run(study: StudyConfig, folder: Path, label: str, seed: int) -> RunConfig:
    from megalign.study.expand import StudyFolder, methods_of, run_config

    method = next(method for method in methods_of(study) if method.label == label)
    return run_config(study, StudyFolder(folder), method, seed)


def _make_data(kind: str, path: Path, seed: int, *languages: str) -> None:
    from megalign.study import data
    from megalign.study.expand import StudyFolder

    study, folder = load_study(StudyFolder(path).config), StudyFolder(path).data(seed)
    if kind == "tokenizer":
        data.prepare(study, seed, folder)
    elif kind == "store":
        for language in languages:
            data.encode_language(study, seed, folder, language)
    else:
        data.join(study, seed, folder)


def work(arguments: list[str]) -> None:
    """Do what the arguments say.

    `train CONFIG [OVERRIDE...]`, `eval CONFIG [OVERRIDE...]`: a run. `tokenizer STUDY SEED`, `store STUDY SEED LANGUAGE`,
    `data STUDY SEED`, `run STUDY LABEL SEED`, `train-run STUDY LABEL SEED` (not evaluated): a step of a study, STUDY
    being its folder. `reshard CONFIG SOURCE TARGET all|weights [OVERRIDE...]`: a checkpoint.
    `nli-run STUDY LABEL SEED`: language inference on a run of a study. `lm-eval RUN SETTINGS [OVERRIDE...]`: tasks of
    lm-evaluation-harness, `nli RUN SETTINGS [OVERRIDE...]`: language inference, SETTINGS being JSON.
    """
    with leaving_on_request():
        _work(*arguments)


def _work(kind: str, path: str, *rest: str) -> None:
    if kind == "train":
        _with_engine(load_run(Path(path), list(rest)), _train)
    elif kind == "eval":
        _with_engine(load_run(Path(path), list(rest)), _evaluate_and_tell)
    elif kind == "reshard":
        source, target, kept, *overrides = rest
        _with_engine(load_run(Path(path), overrides), _resharding(Path(source), Path(target), kept == "all"))
    elif kind == "lm-eval":
        from megalign.evaluation.harness_run import HarnessSettings, reading

        settings, *overrides = rest
        dtype = HarnessSettings.model_validate_json(settings).dtype
        _with_engine(reading(Path(path), overrides, dtype), partial(_harness, settings=settings))
    elif kind == "nli":
        settings, *overrides = rest
        run = load_run(Path(path) / "config.yaml", overrides)
        _with_engine(run, partial(_inference, settings=settings))
    elif kind == "nli-run":
        from megalign.study.expand import StudyFolder, nli_settings

        study = load_study(Path(path) / "study.yaml")
        run = _study_run(study, Path(path), rest[0], int(rest[1]))
        named = nli_settings(study, StudyFolder(Path(path)), int(rest[1]))
        _with_engine(run, partial(_inference, settings=named.model_dump_json()))
    elif kind in ("tokenizer", "store", "data"):
        _make_data(kind, Path(path), int(rest[0]), *rest[1:])
    elif kind in ("run", "train-run"):
        study = load_study(Path(path) / "study.yaml")
        run = _study_run(study, Path(path), rest[0], int(rest[1]))
        _with_engine(run, _train_and_evaluate if kind == "run" else _train)
    else:
        raise ValueError(f"unknown work {kind!r}")


def main() -> None:
    """Entry point of the process."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("megatron").setLevel(logging.ERROR)
    outlive_reader()
    stop_with_launcher()
    try:
        work(sys.argv[1:])
    except (MegalignError, OSError) as error:
        code = report_error(error, int(os.environ.get("RANK", "0")))
        sys.stdout.flush()
        # Another rank may hang in a collective that this one left: do not wait for it in the interpreter's shutdown.
        os._exit(code)


if __name__ == "__main__":
    main()
