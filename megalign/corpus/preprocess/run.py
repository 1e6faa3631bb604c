"""A whole preprocessing run: plan, build, cut to the budgets, finish. Started again, it goes on where it stopped.

The store does not depend on how many workers built it, nor on how often it was interrupted: tasks have a fixed order, a
language's store is the shortest run of parts in that order that holds its budget, and the last part is cut to fit.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megalign import files
from megalign.corpus.build import cut_to_fit
from megalign.corpus.preprocess.deduplicate import hash_task, mark_duplicates
from megalign.corpus.preprocess.parallel import Workers
from megalign.corpus.preprocess.parts import (
    WORK,
    Context,
    PartRecord,
    build_task,
    quarantine_path,
    record_path,
    remember,
)
from megalign.corpus.preprocess.plan import Task, make_tasks
from megalign.corpus.preprocess.select import check_bad_rows
from megalign.corpus.preprocess.settings import LanguageBudget, PreprocessSettings
from megalign.corpus.readers import Document
from megalign.corpus.store.reader import Unit, read_unit_json
from megalign.corpus.store.writer import MANIFEST, StoreWriter, write_manifest
from megalign.corpus.tokenizer import Tokenizer
from megalign.errors import DataError

BUILD, QUARANTINE = "build.json", "quarantine.jsonl"
# Before anything is measured: fewer bytes of text per token than nearly any language has.
_FIRST_BYTES_PER_TOKEN = 3.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a language is.

    Attributes:
        text_bytes: of its finished parts.
        tokens: training tokens of its finished parts.
        tasks_done: finished tasks.
        tasks: tasks it has, of which a budget may need only some.
    """

    language: str
    text_bytes: int
    tokens: int
    budget_tokens: int | None
    tasks_done: int
    tasks: int


def run(
    settings: PreprocessSettings,
    output: Path,
    workers: Workers,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Build a store, or go on building it; returns the content of its build.json (settings, tasks, parts and counts).

    Raises:
        DataError: the input cannot be used, too many rows are bad, a language has too little text for its budget, or the
            folder holds a store made with other settings.
    """
    build_path = output / BUILD
    if (output / MANIFEST).exists():
        finished: dict[str, Any] = files.read_json(build_path) if build_path.exists() else {}
        if changed := _changed(finished, _plan(settings)[0]):
            raise DataError(
                f"The store {output} is finished and was made in another way: {', '.join(changed)} changed.",
                fix="Choose another folder, or remove this one.",
            )
        return finished
    context, tasks = _prepare(settings, output, tokenizer)
    chosen: list[PartRecord] = []
    cuts: dict[str, int] = {}
    for budget in settings.languages:
        own = [task for task in tasks if task.language == budget.language]
        records = _build_language(context, workers, budget, own, on_progress)
        chosen += records
        if budget.budget_tokens is not None:
            cuts[budget.language] = budget.budget_tokens
    return _finish(context, tasks, chosen, cuts)


def _plain(settings: PreprocessSettings) -> Any:
    """Settings as JSON gives them back."""
    return _as_json(settings.to_json())


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(entry) for key, entry in value.items()}
    return [_as_json(entry) for entry in value] if isinstance(value, list | tuple) else value


def _prepare(settings: PreprocessSettings, output: Path) -> tuple[Context, list[Task]]:
    """Make the plan, or check that the unfinished store has the same; sweep what a killed writer left."""
    work = output / WORK
    tokenizer = remember(Tokenizer.load(Path(settings.tokenizer)))
    tasks = make_tasks(settings)
    plan = {
        "settings": _plain(settings),
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "eos_token": tokenizer.eos_token,
        "tasks": [task.to_json() for task in tasks],
    }
    if (work / "plan.json").exists():
        begun = files.read_json(work / "plan.json")
        changed = [key for key in plan if begun.get(key) != plan[key]]
        changed += [key for key, value in plan["settings"].items() if begun["settings"].get(key) != value]
        if changed:
            raise DataError(
                f"The unfinished store {output} was begun in another way: {', '.join(changed)} changed.",
                "Parts of both would be mixed.",
                "Give the same settings and input to continue, or remove the folder.",
            )
    else:
        tokenizer.save(work / "tokenizer.json")
        files.write_json(work / "plan.json", plan)
    for left in output.rglob(".tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    return Context(settings, output, tokenizer.fingerprint, tokenizer.eos_token), tasks


def _build_language(
    context: Context,
    workers: Workers,
    budget: LanguageBudget,
    tasks: list[Task],
    on_progress: Callable[[Progress], None],
) -> list[PartRecord]:
    """The shortest run of parts, in the order of tasks, that holds a language's budget."""
    settings, work = context.settings, context.output / WORK
    done: dict[int, list[PartRecord]] = {}
    tokens = text_bytes = 0
    counts: Counter[str] = Counter()
    begun = 0
    while begun < len(tasks) and (budget.budget_tokens is None or tokens < budget.budget_tokens):
        room = None if budget.budget_tokens is None else budget.budget_tokens - tokens
        ratio = text_bytes / tokens if tokens else _FIRST_BYTES_PER_TOKEN
        wave = tasks[begun : begun + _num_needed(tasks[begun:], room, ratio)]
        if settings.deduplicate:
            for _ in workers.unordered(hash_task, ((settings, work, task) for task in wave)):
                pass
            mark_duplicates(work, [task.index for task in tasks[:begun]], [task.index for task in wave])
        for records in workers.unordered(build_task, ((context, task, room) for task in wave)):
            done[records[0].task] = records
            for record in records:
                counts.update(record.counts)
            check_bad_rows(counts, settings, finished=False)
            tokens += sum(record.tokens() for record in records)
            text_bytes += sum(record.num_text_bytes for record in records)
            on_progress(Progress(budget.language, text_bytes, tokens, budget.budget_tokens, len(done), len(tasks)))
        begun += len(wave)
    if budget.budget_tokens is not None and tokens < budget.budget_tokens:
        raise DataError(
            f"The input has {tokens} training tokens of {budget.language}, fewer than the budget of {budget.budget_tokens}.",
            fix="Lower the budget, or write all.",
        )
    ordered = [record for task in tasks if task.index in done for record in done[task.index]]
    return list(_until(ordered, budget.budget_tokens))


def _num_needed(tasks: list[Task], room_tokens: int | None, bytes_per_token: float) -> int:
    """How many tasks probably hold `room_tokens`; at least one. Too many only costs time, too few only another round."""
    if room_tokens is None:
        return len(tasks)
    held = 0
    for number, task in enumerate(tasks, start=1):
        held += task.num_text_bytes
        if held >= room_tokens * bytes_per_token:
            return number
    return len(tasks)


def _until(records: Iterable[PartRecord], budget_tokens: int | None) -> Iterator[PartRecord]:
    tokens = 0
    for record in records:
        yield record
        tokens += record.tokens()
        if budget_tokens is not None and tokens >= budget_tokens:
            return


def _finish(context: Context, tasks: list[Task], chosen: list[PartRecord], cuts: dict[str, int]) -> dict[str, Any]:
    """Cut to the budgets, check the counts, write build.json and the manifest, remove what is no longer needed."""
    settings, output, vocabulary = context.settings, context.output, context.vocabulary
    counts: dict[str, Counter[str]] = {budget.language: Counter() for budget in settings.languages}
    language_of = {task.index: task.language for task in tasks}
    for record in chosen:
        counts[language_of[record.task]].update(record.counts)
    check_bad_rows(sum(counts.values(), Counter()), settings)
    units = [unit for record in chosen for unit in record.units]
    for language, budget_tokens in cuts.items():
        own = [unit for unit in units if (unit["language"], unit["split"]) == (language, "train")]
        surplus = sum(unit["tokens"] for unit in own) - budget_tokens
        if surplus:
            last = own[-1]
            units[units.index(last)] = _cut_unit(StoreWriter(output, vocabulary), last, last["tokens"] - surplus)
    for budget in settings.languages:
        if not any(unit["language"] == budget.language for unit in units):
            raise DataError(f"No document of {budget.language} is left.", fix="Look at the filters.")
    quarantined = [quarantine_path(output, record.task, record.part) for record in chosen]
    if settings.on_bad_row == "quarantine":
        content = b"".join(path.read_bytes() for path in quarantined if path.exists())
        files.write_bytes(output / QUARANTINE, content)
    build: dict[str, Any] = files.read_json(output / WORK / "plan.json") | {
        "counts": {language: dict(sorted(count.items())) for language, count in counts.items()},
        "parts": [asdict(record) for record in chosen],
    }
    files.write_json(output / BUILD, build)
    write_manifest(output, vocabulary, units)
    _sweep(output, {unit["path"] for unit in units})
    return build


def _cut_unit(writer: StoreWriter, entry: dict[str, Any], num_tokens: int) -> dict[str, Any]:
    """Rewrite a unit with its first `num_tokens` tokens; its new entry for the manifest."""
    folder = writer.path / entry["path"]
    old = Unit(folder, entry | {"tokens": read_unit_json(folder)["tokens"]})
    with writer.unit(entry["path"], entry["language"], entry["split"]) as unit:
        for index in range(old.num_documents):
            start, end = (int(offset) for offset in old.doc_offsets[index : index + 2])
            source, row, url = old.origin(index)
            ids, flags = old.tokens(start, end - start), old.word_start_flags(start, end - start)
            kept, kept_flags = cut_to_fit(ids, flags, num_tokens - unit.num_tokens)
            unit.add(kept, kept_flags, Document("", source, row, url))
            if unit.num_tokens == num_tokens:
                break
    return writer.entries()[0]


def _sweep(output: Path, used: set[str]) -> None:
    """Remove units beyond the budgets and the records of the run."""
    for folder in (p for p in output.iterdir() if p.is_dir() and p.name != WORK):
        for unit in folder.iterdir():
            if unit.relative_to(output).as_posix() not in used:
                shutil.rmtree(unit)
    shutil.rmtree(output / WORK)


def restore_work(output: Path) -> PreprocessSettings:
    """Turn a finished store back into an unfinished one, from its build.json, so that `run` builds what is missing.

    Raises:
        DataError: the store was not made by `run`.
    """
    if not (output / BUILD).exists():
        raise DataError(
            f"The store {output} has no {BUILD}, so its units cannot be built again.",
            fix="Only stores made by preprocess_culturax.py can be repaired.",
        )
    build = files.read_json(output / BUILD)
    work = output / WORK
    settings = PreprocessSettings.from_json(build["settings"])
    for record in build["parts"]:
        # Quarantined rows are only in the finished file: their parts are read again.
        if settings.on_bad_row != "quarantine" or not record["counts"].get("bad"):
            files.write_json(record_path(output, record["task"], record["part"]), record)
    tokenizer = Tokenizer.load(Path(settings.tokenizer), build["eos_token"])
    tokenizer.save(work / "tokenizer.json")
    files.write_json(
        work / "plan.json", {key: build[key] for key in ("settings", "tokenizer_fingerprint", "eos_token", "tasks")}
    )
    (output / MANIFEST).unlink(missing_ok=True)
    return settings
