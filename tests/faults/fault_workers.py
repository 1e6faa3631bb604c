"""Real worker processes of a run, started in a moment, to be killed, signalled and made to fail.

They are forked from the same server as in tests/distributed, which has imported everything once; from there on they are
`python -m megalign.study.worker` with its rank, its environment and its exit code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import ranks
import yaml
from training_data import run_config

from megalign.cluster.local import free_port, process_environment
from megalign.engine.checkpoint.folder import complete, latest

PATIENCE_SECONDS = 240.0  # for what takes a few seconds on a quiet machine

ranks._context.set_forkserver_preload(
    [
        "pytest",
        "megalign.engine.engine",
        "megalign.engine.checkpoint",
        "megalign.training.run",
        "megalign.evaluation.run",
    ]
)


def build_data(folder: Path) -> Path:
    """As training_data.build_files, with held-out text."""
    from megalign.corpus.build import build_language
    from megalign.corpus.procedural import ProceduralEnglish
    from megalign.corpus.store import StoreWriter
    from megalign.corpus.tokenizer import train_tokenizer
    from megalign.corpus.vocabulary import Vocabulary
    from megalign.corpus.word_counts import words_of
    from megalign.prealign.table import golden_table

    english = ProceduralEnglish(0)
    texts = list(islice(english.documents("train"), 60))
    vocabulary = Vocabulary(
        train_tokenizer(texts, 400, folder / "tokenizer.json"), ("en", "en-clone"), {"en-clone": "en"}
    )
    with StoreWriter(folder / "store", vocabulary) as writer:
        for language, stream, split, budget in (
            *(("en", "train", "train", 6000), ("en-clone", "clone", "train", 400)),
            *(("en", "valid", "valid", 700), ("en-clone", "valid", "valid", 700)),
        ):
            build_language(
                writer, documents=english.documents(stream), language=language, split=split, budget_tokens=budget
            )
    counts = Counter(word for text in texts for word in words_of(text, "en"))
    golden_table(counts, min_count=5).save(folder / "table.parquet")
    return folder


def write_run(data: Path, folder: Path, **changes: Any) -> Path:
    """The YAML file of a run (see training_data.run_config) that saves after every step."""
    settings = {"train__checkpoint_interval": 1, "inject__steps": 0, "method": "joint", **changes}
    path = folder.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(run_config(data, folder, **settings).model_dump(mode="json")), encoding="utf-8")
    return path


class Workers:
    """The processes of `megalign.study.worker ARGUMENTS`.

    Args:
        arguments: as the worker takes them.
        log: their output, appended.
        world_size: how many.
        fault: importable; called in every process before it works.
        environment: more variables.
    """

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        *,
        world_size: int = 1,
        fault: Callable[[], None] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = log
        port = free_port()
        self.processes = []
        for rank in range(world_size):
            variables = {**process_environment(rank, world_size, port, 1), **(environment or {})}
            process = ranks._context.Process(target=_work, args=(arguments, variables, log, fault))
            process.start()
            self.processes.append(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def send(self, number: int, rank: int = 0) -> None:
        """Send a signal to one process."""
        os.kill(self.processes[rank].pid, number)  # type: ignore[arg-type]

    def kill(self) -> None:
        """End all, as a launcher does after one has gone."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        for process in self.processes:
            process.join()

    def wait(self, seconds: float = PATIENCE_SECONDS) -> list[int | None]:
        """The exit codes; None for those that did not end in time."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def until(self, condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> bool:
        """Wait for a condition. False: a process ended before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if any(process.exitcode is not None for process in self.processes):
                return False
            assert time.monotonic() < deadline, f"nothing happened in {seconds} s:\n{self.output}"
            time.sleep(0.002)
        return True

    @property
    def output(self) -> str:
        """What all processes wrote."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


def _work(arguments: list[str], environment: dict[str, str], log: Path, fault: Callable[[], None] | None) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["worker", *arguments]
    if fault is not None:
        fault()
    from megalign.study.worker import main

    main()


def run_to_end(arguments: list[str], log: Path, *, world_size: int = 1, **kwargs: Any) -> str:
    """Run workers that must end well; what they wrote."""
    with Workers(arguments, log, world_size=world_size, **kwargs) as workers:
        codes = workers.wait()
        assert codes == [0] * world_size, f"{codes}\n{workers.output}"
        return workers.output


def checkpoints(folder: Path) -> Path:
    """The folder of pretraining's checkpoints."""
    return folder / "checkpoints" / "pretrain"


def last_step(folder: Path) -> int:
    """The step of the latest checkpoint of pretraining; 0 without one."""
    path = latest(checkpoints(folder))
    return int(path.name.removeprefix("step_")) if path else 0


def steps_kept(folder: Path) -> list[int]:
    """Steps of the complete checkpoints of pretraining."""
    return [int(path.name.removeprefix("step_")) for path in complete(checkpoints(folder))]


def tensors(layout: Any, path: Path) -> dict[str, Any]:
    """All tensors of a checkpoint, weights and moments, as Megatron reads them without a model."""
    from megalign.engine.mcore import dist_checkpointing

    content = dist_checkpointing.load_plain_tensors(str(path / "shards"))
    return {key: value.float().numpy() for key, value in content.items() if hasattr(value, "numpy")}


def read_latest(folder: Path) -> dict[str, Any]:
    """`tensors` of the latest checkpoint of a run's pretraining."""
    path = latest(checkpoints(folder))
    assert path is not None
    (content,) = ranks.run(tensors, ranks.layout_of(), path)
    return content
