"""Run a study here: its steps side by side as the cores allow, rerun to continue."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from megalign.cluster.local import ForwardSignals, LocalProcesses
from megalign.config import StudyConfig
from megalign.config.compare import differences
from megalign.errors import ConfigError, DataError, EnvironmentProblem, MegalignError, StoppedOnRequest
from megalign.files import lock, write_json, write_text
from megalign.study.expand import StudyFolder, describe
from megalign.study.graph import Step, marker_of, steps_of
from megalign.study.progress import Progress

_ERRORS = {error.exit_code: error for error in (ConfigError, DataError, EnvironmentProblem)}


def begin(study: StudyConfig, folder: StudyFolder) -> list[Step]:
    """Write the study's resolved settings and list its steps.

    Raises:
        ConfigError: the folder holds a study with other settings, or a method does not fit.
    """
    steps = steps_of(study, folder)
    content = study.model_dump(mode="json")
    if folder.config.exists():
        before = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
        changed = [
            f"{key} was {old!r}, is {new!r}"
            for key, old, new in differences(before, content)
            if not key.startswith("execution.")
        ]
        if changed:
            raise ConfigError(
                f"{folder.path} holds this study with other settings: {'; '.join(changed)}.",
                "Results of different settings would stand in one report.",
                "Give the study another name or --out folder, or remove the old folder.",
            )
    write_text(folder.config, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    write_json(folder.description, describe(study))
    return steps


def run_steps(steps: list[Step], folder: StudyFolder, *, max_processes: int, console: Console) -> None:
    """Run all steps that are not done.

    Args:
        steps: from `begin`.
        folder: the study's files.
        max_processes: processes computing at a time; a step that needs more runs alone.
        console: where progress is shown.

    Raises:
        EnvironmentProblem: another process runs this study.
        StoppedOnRequest: a signal came; the running steps saved their state.
        MegalignError: a step failed; the others that did not need it were run.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with (folder.path / ".lock").open("ab") as stream:
        if not lock(stream):
            raise EnvironmentProblem(
                f"Another process runs the study in {folder.path}.",
                "Both would take the same steps, and clear away each other's unfinished files.",
                "Wait for it, or stop it: the same command then goes on.",
            )
        _run_steps(steps, folder, max_processes, console)


def _run_steps(steps: list[Step], folder: StudyFolder, max_processes: int, console: Console) -> None:
    waiting: list[Step] = []
    running: dict[str, tuple[Step, LocalProcesses]] = {}
    failed: dict[str, int] = {}
    done = set()
    skipped: set[str] = set()
    with Progress(folder, steps, console) as progress, ForwardSignals() as signals:
        for step in steps:
            if Path(marker_of(folder, step)).exists():
                done.add(step.name)
                progress.set(step, "done before")
            else:
                waiting.append(step)
        while waiting or running:
            if signals.received is None:
                for step in _startable(waiting, done, running, max_processes):
                    waiting.remove(step)
                    running[step.name] = (step, _start(step, folder))
                    signals.targets = [processes for _, processes in running.values()]
                    progress.set(step, "running")
            for step, processes in list(running.values()):
                code = processes.poll()
                if code is None:
                    continue
                del running[step.name]
                signals.targets = [processes for _, processes in running.values()]
                if code == 0:
                    write_json(Path(marker_of(folder, step)), {"step": step.name})
                    done.add(step.name)
                    progress.set(step, "done")
                elif code == StoppedOnRequest.exit_code or signals.received is not None:
                    progress.set(step, "stopped")
                else:
                    failed[step.name] = code
                    progress.set(step, "failed")
            if signals.received is not None and not running:
                break
            for step in waiting.copy():  # in order: what needs a skipped step stands behind it
                if any(need in failed or need in skipped for need in step.needs):
                    waiting.remove(step)
                    skipped.add(step.name)
                    progress.set(step, "skipped")
            progress.update()
            time.sleep(0.1)
    if signals.received is not None:
        raise StoppedOnRequest(
            f"The study was stopped by {signal.Signals(signals.received).name}.",
            fix="Run the same command again to continue.",
        )
    if failed:
        raise _failure(failed, folder)


def _startable(waiting: Iterable[Step], done: set[str], running: dict[str, Any], max_processes: int) -> list[Step]:
    """The next steps that may start now, in order; what needs more processes than are free waits."""
    used = sum(step.processes for step, _ in running.values())
    chosen = []
    for step in waiting:
        if not all(need in done for need in step.needs):
            continue
        if used and used + step.processes > max_processes:
            continue
        chosen.append(step)
        used += step.processes
    return chosen


def _start(step: Step, folder: StudyFolder) -> LocalProcesses:
    return LocalProcesses(
        ["megalign.study.worker", *step.arguments],
        world_size=step.processes,
        log=folder.logs / f"{step.name}.log",
    )


def _failure(failed: dict[str, int], folder: StudyFolder) -> MegalignError:
    parts = []
    for name, code in failed.items():
        log = folder.logs / f"{name}.log"
        parts.append(f"{name} ended with code {code}; the end of {log}:\n{_tail(log)}")
    kind = _ERRORS.get(next(iter(failed.values())), MegalignError)
    return kind("\n".join(parts), fix="Mend the cause and run the same command again to continue.")


def _tail(log: Path, lines: int = 12) -> str:
    """The last error in a log, or its last lines."""
    text = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    starts = [number for number, line in enumerate(text) if line.startswith("error: ")]
    return "\n".join("    " + line for line in (text[starts[-1] :] if starts else text[-lines:])[:lines])


def default_processes(study: StudyConfig) -> int:
    """Processes that compute at a time: what the study says, or the cores this process may use."""
    return study.execution.processes or len(os.sched_getaffinity(0))
