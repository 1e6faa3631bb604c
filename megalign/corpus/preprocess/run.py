"""A whole preprocessing run: plan, build, cut to the budgets, finish. Started again, it goes on where it stopped.

The store does not depend on how many workers built it, nor on how often it was interrupted: tasks have a fixed order, a
language's store is the shortest run of parts in that order that holds its budget, and the last part is cut to fit.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
from megalign.corpus.preprocess.select import check_bad_rows, no_document
from megalign.corpus.preprocess.settings import LanguageBudget, PreprocessSettings
from megalign.corpus.readers import Document
from megalign.corpus.store.reader import Unit, read_unit_json
from megalign.corpus.store.writer import MANIFEST, StoreWriter, write_manifest
from megalign.corpus.tokenizer import Tokenizer
from megalign.errors import DataError, MegalignError

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
    *,
    kept_tokenizer: bool = False,
) -> dict[str, Any]:
    """Build a store, or go on building it; returns the content of its build.json (settings, tasks, parts and counts).

    Args:
        settings: what is asked for.
        output: the store.
        workers: where the work is done.
        on_progress: called after every task.
        kept_tokenizer: take the tokenizer that the unfinished store keeps, wherever that of the settings is by now.

    Raises:
        DataError: the input cannot be used, too many rows are bad, a language has too little text for its budget, or the
            folder holds a store made with other settings, tokenizer or input, or other files.
    """
    build_path = output / BUILD
    if (output / MANIFEST).exists():
        finished: dict[str, Any] = files.read_json(build_path) if build_path.exists() else {}
        if changed := _changed(finished, _plan_if_possible(settings)):
            raise DataError(
                f"The store {output} is finished and was made in another way: {', '.join(changed)} changed.",
                "It does not hold what is asked for now; tasks are the files of the input and their sizes.",
                fix="Choose another folder, or remove this one.",
            )
        return finished
    context, tasks = _prepare(settings, output, kept_tokenizer)
    with _alone(output):
        _sweep_temporary(settings, output)
        chosen: list[PartRecord] = []
        cuts: dict[str, int] = {}
        for budget in settings.languages:
            own = [task for task in tasks if task.language == budget.language]
            records = _build_language(context, workers, budget, own, on_progress)
            chosen += records
            if budget.budget_tokens is not None:
                cuts[budget.language] = budget.budget_tokens
        return _finish(context, tasks, chosen, cuts)


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Hold an unfinished store, so that no other process builds it at the same time.

    Raises:
        DataError: another process holds it.
    """
    with (output / WORK / "lock").open("w") as stream:
        if not files.lock(stream):
            raise DataError(
                f"Another process is building the store {output}.",
                "Each would remove what the other writes.",
                "Wait until it has ended, or choose another folder.",
            )
        yield


def _plain(settings: PreprocessSettings) -> Any:
    """Settings as JSON gives them back."""
    return _as_json(settings.to_json())


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(entry) for key, entry in value.items()}
    return [_as_json(entry) for entry in value] if isinstance(value, list | tuple) else value


def _plan(settings: PreprocessSettings, tokenizer: Tokenizer, tasks: list[Task]) -> dict[str, Any]:
    """What a store is made of and how, as JSON."""
    return {
        "settings": _plain(settings),
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "eos_token": tokenizer.eos_token,
        "tasks": [task.to_json() for task in tasks],
    }


def _plan_if_possible(settings: PreprocessSettings) -> dict[str, Any]:
    """The plan, or the settings alone: a finished store may outlive its input and its tokenizer's file."""
    try:
        return _plan(settings, Tokenizer.load(Path(settings.tokenizer), settings.eos_token), make_tasks(settings))
    except MegalignError:
        return {"settings": _plain(settings)}


def _changed(begun: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    """What of a plan is not as it was."""
    changed = [key for key in plan if begun.get(key) != plan[key]]
    before = begun.get("settings", {})
    return changed + [key for key, value in plan["settings"].items() if before.get(key) != value]


def _prepare(settings: PreprocessSettings, output: Path, kept_tokenizer: bool) -> tuple[Context, list[Task]]:
    """Make the plan, or check that the unfinished store has the same."""
    work = output / WORK
    begun = files.read_json(work / "plan.json") if (work / "plan.json").exists() else None
    if kept_tokenizer and begun is not None:
        tokenizer = remember(Tokenizer.load(work / "tokenizer.json", begun["eos_token"]))
    else:
        tokenizer = remember(Tokenizer.load(Path(settings.tokenizer), settings.eos_token))
    tasks = make_tasks(settings)
    plan = _plan(settings, tokenizer, tasks)
    if begun is not None:
        if changed := _changed(begun, plan):
            raise DataError(
                f"The unfinished store {output} was begun in another way: {', '.join(changed)} changed.",
                "Parts of both would be mixed.",
                "Give the same settings and input to continue, or remove the folder.",
            )
    else:
        languages = (budget.language for budget in settings.languages)
        if taken := [n for n in (*languages, "tokenizer.json", BUILD, QUARANTINE) if (output / n).exists()]:
            raise DataError(
                f"The folder {output} is no store that was begun, and has {', '.join(taken)}.",
                "That would be overwritten.",
                "Choose another folder.",
            )
        tokenizer.save(work / "tokenizer.json")
        files.write_json(work / "plan.json", plan)
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
            raise no_document(budget.language, counts[budget.language])
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
    _sweep(settings, output, {unit["path"] for unit in units})
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


def _sweep_temporary(settings: PreprocessSettings, output: Path) -> None:
    """Remove what a killed writer left."""
    for budget in settings.languages:
        for left in (output / budget.language).glob(".tmp-*"):
            shutil.rmtree(left, ignore_errors=True)


def _sweep(settings: PreprocessSettings, output: Path, used: set[str]) -> None:
    """Remove units beyond the budgets and the records of the run."""
    for budget in settings.languages:
        for unit in (output / budget.language).iterdir():
            if unit.is_dir() and unit.relative_to(output).as_posix() not in used:
                shutil.rmtree(unit)
    shutil.rmtree(output / WORK)


def restore_work(output: Path) -> PreprocessSettings:
    """Turn a finished store back into an unfinished one, from its build.json, so that `run` builds what is missing.

    Nothing is changed where that cannot succeed.

    Raises:
        DataError: the store was not made by `run`, or its input or tokenizer is gone or has changed.
    """
    if not (output / BUILD).exists():
        raise DataError(
            f"The store {output} has no {BUILD}, so its units cannot be built again.",
            fix="Only stores made by preprocess_culturax.py can be repaired.",
        )
    build = files.read_json(output / BUILD)
    work = output / WORK
    settings = PreprocessSettings.from_json(build["settings"])
    tokenizer = _tokenizer_of(output, build)
    if [task.to_json() for task in make_tasks(settings)] != build["tasks"]:
        raise DataError(
            f"The input {settings.input} is not the one the store {output} was built from.",
            "Files are missing, or their sizes have changed.",
            "Put the input back, and start in the same working directory if its path is relative.",
        )
    for record in build["parts"]:
        # Quarantined rows are only in the finished file: their parts are read again.
        if settings.on_bad_row != "quarantine" or not record["counts"].get("bad"):
            files.write_json(record_path(output, record["task"], record["part"]), record)
    tokenizer.save(work / "tokenizer.json")
    files.write_json(
        work / "plan.json", {key: build[key] for key in ("settings", "tokenizer_fingerprint", "eos_token", "tasks")}
    )
    (output / MANIFEST).unlink(missing_ok=True)
    return settings


def _tokenizer_of(output: Path, build: dict[str, Any]) -> Tokenizer:
    """A store's tokenizer: the copy in the store or, where that is damaged, the file it was built with."""
    for path in (output / "tokenizer.json", Path(build["settings"]["tokenizer"])):
        try:
            tokenizer = Tokenizer.load(path, build["eos_token"])
        except DataError:
            continue
        if tokenizer.fingerprint == build["tokenizer_fingerprint"]:
            return tokenizer
    raise DataError(
        f"The tokenizer of the store {output} is gone: neither its copy nor {build['settings']['tokenizer']} is it.",
        fix="Put the tokenizer back that the store was built with.",
    )
