"""Tasks of lm-evaluation-harness on a run: settings, offline by default, results as files."""

from __future__ import annotations

import json
import logging
import os
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from megalign.config import RunConfig, load_run
from megalign.config.layout import Layout
from megalign.config.sections import NonNegative, Positive, Section
from megalign.engine import groups
from megalign.errors import ConfigError, DataError, EnvironmentProblem, MegalignError, first_line
from megalign.files import write_json, write_text


class HarnessSettings(Section):
    """What is evaluated, and how."""

    out: str = Field(description="Folder of the results.")
    tasks: list[str] = Field(min_length=1, description="Tasks or groups of the harness, or paths of task files.")
    include_path: str | None = Field(None, description="Folder with more task files.")
    num_fewshot: NonNegative | None = Field(None, description="Examples before each question; unset: the task's.")
    limit: Positive | None = Field(None, description="Only so many documents of each task.")
    batch_size: Positive = Field(16, description="Rows computed at once.")
    language: str | None = Field(None, description="Language of the tasks in the vocabulary; for clones.")
    dtype: str | None = Field(None, description="float32 or bfloat16; unset: as trained.")
    gen_kwargs: str | None = Field(None, description="Settings of generating tasks, e.g. max_gen_toks=32.")
    bootstrap_iters: NonNegative = Field(1000, description="Resamples for the standard errors of some metrics.")
    allow_download: bool = Field(False, description="May fetch the tasks' data.")

    @field_validator("gen_kwargs")
    @classmethod
    def _are_pairs(cls, value: str | None) -> str | None:
        if value and not all(re.match(r"\w+=", part.strip()) for part in value.split(",")):
            raise ValueError(f"{value!r} is not of the form key=value,key=value")
        return value


def go_offline() -> None:
    """Let Hugging Face's libraries read local files alone; before they are imported."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"


def reading(run: Path, overrides: Sequence[str] = (), dtype: str | None = None) -> RunConfig:
    """A run's configuration in its tensor and pipeline layout, without replicas: all processes share every row.

    Raises:
        ConfigError: the overrides ask for replicas, or for a dtype that runs do not have.
    """
    from megalign.answers.trained_run import reading_config

    written = load_run(run / "config.yaml", []).parallel
    plain = written.model_copy(update={"data": 1, "context": 1, "distributed_optimizer": False})
    config = load_run(
        run / "config.yaml", [*(f"parallel.{k}={json.dumps(v)}" for k, v in plain.model_dump().items()), *overrides]
    )
    if config.parallel.data > 1 or config.parallel.context > 1:
        raise ConfigError(
            f"parallel.data is {config.parallel.data} and parallel.context {config.parallel.context}.",
            "The tasks are not shared between replicas.",
            "Leave both at 1; start several evaluations with different tasks.",
        )
    Layout(config.parallel).check(config.model)
    return reading_config(run, dtype, config.parallel)


def evaluate_tasks(config: RunConfig, settings: HarnessSettings) -> None:
    """Evaluate; called by every process of the layout. The first writes results.json, samples_TASK.jsonl, results.md.

    Results so far are kept in progress.jsonl: the same command goes on where it was stopped.

    Raises:
        DataError: a task or its data cannot be read, or the folder was begun with another model.
        EnvironmentProblem: lm_eval is missing.
    """
    if not settings.allow_download:
        go_offline()
    if groups.rank():
        # All ranks read the same tasks: one tells of it.
        os.environ["TQDM_DISABLE"] = "1"
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise EnvironmentProblem(
            f"lm-evaluation-harness cannot be used: {error}.", "It has the tasks.", "pip install megalign[eval]"
        ) from None
    from megalign.answers.trained_run import load_run_model
    from megalign.evaluation import harness

    out = Path(settings.out)
    manager = TaskManager(include_path=settings.include_path)
    _check_tasks(settings, manager)
    model = load_run_model(config, batch_size=settings.batch_size, language=settings.language)
    lm = harness.MegalignLM(model, progress_file=out / "progress.jsonl")
    try:
        results = simple_evaluate(
            lm,
            tasks=list(settings.tasks),
            task_manager=manager,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            batch_size=settings.batch_size,
            gen_kwargs=settings.gen_kwargs,
            bootstrap_iters=settings.bootstrap_iters,
            log_samples=True,
        )
    except MegalignError:
        raise
    except Exception as error:  # of task files, templates, data, metrics
        if _came_through(harness.__file__, error):
            raise
        raise _of_tasks(error, settings) from error
    if groups.rank() == 0:
        _write(results, out, lm.num_cut)


def _came_through(file: str, error: BaseException) -> bool:
    """Whether an error passed through the code of a file."""
    return any(frame.f_code.co_filename == file for frame, _ in traceback.walk_tb(error.__traceback__))


def _of_tasks(error: Exception, settings: HarnessSettings) -> DataError:
    what = f"The tasks {', '.join(settings.tasks)} cannot be evaluated: {first_line(error)}."
    if isinstance(error, OSError) and not settings.allow_download:
        return DataError(
            what,
            "Task data are read from local files unless a download is allowed.",
            "Correct the task's dataset_path and data_files, or allow the download (--allow-download).",
        )
    return DataError(what, fix="Correct the task's YAML file, or its data.")


def _check_tasks(settings: HarnessSettings, manager: Any) -> None:
    unknown = [name for name in settings.tasks if name not in manager.all_tasks and not Path(name).is_file()]
    if unknown:
        raise ConfigError(
            f"lm-evaluation-harness has no task {', '.join(unknown)}.",
            fix="Correct the name, or name the folder of the task's YAML file (--include-path), which must be whole YAML.",
        )


def _write(results: dict[str, Any], out: Path, num_cut: int) -> None:
    from lm_eval.utils import handle_non_serializable, make_table

    def plain(value: Any) -> Any:
        return json.loads(json.dumps(value, default=handle_non_serializable, ensure_ascii=False))

    samples = results.pop("samples", {})
    for task, rows in samples.items():
        lines = [json.dumps(plain(row), ensure_ascii=False) for row in rows]
        write_text(out / f"samples_{task}.jsonl", "\n".join(lines) + "\n")
    table = make_table(results)
    if results.get("groups"):
        table += "\n" + make_table(results, "groups")
    write_text(out / "results.md", table)
    write_json(out / "results.json", {**plain(results), "num_cut_contexts": num_cut})
    print(table)
    if num_cut:
        print(f"{num_cut} contexts were longer than the model takes and were cut at their start")
    print(f"results: {out / 'results.json'}")
