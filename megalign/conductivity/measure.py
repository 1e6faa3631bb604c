"""The whole protocol for one model: check what is to be taught, teach it, ask, score, report. Rerun to continue."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megalign.answers import AnswerModel, Greedy, Item, answer_items, open_model
from megalign.answers.fingerprint import weights_fingerprint
from megalign.clika.conductivity import TRANSLATION, Conductivity, conductivity, require_scorable
from megalign.clika.conductivity_report import write_report
from megalign.clika.findings import Finding
from megalign.clika.knowledge import Knowledge, Row, languages_in, read_knowledge
from megalign.clika.knowledge_checks import FATAL, check_folder
from megalign.conductivity.begun import differences
from megalign.conductivity.log import Countdown
from megalign.conductivity.rows import digest_of, prompt_of
from megalign.conductivity.settings import STATES, TuneSettings
from megalign.config.load import read_yaml
from megalign.errors import ConfigError, DataError
from megalign.files import make_folder, only_process, read_json, write_json
from megalign.hub import local_model

Say = Callable[[str], None]


@dataclass(frozen=True)
class MeasureSettings:
    """How conductivity is measured.

    Attributes:
        tune: how the model is taught.
        languages: codes beside English; empty for all that the knowledge has.
        batch_size: rows answered at once.
        max_new_tokens: longest answer.
        device, dtype, allow_download: see megalign.answers.open_model.
        accept_findings: teach although the checks found what makes the score meaningless.
        seed, num_resamples, confidence: of the bootstrap.
    """

    tune: TuneSettings = field(default_factory=TuneSettings)
    languages: tuple[str, ...] = ()
    batch_size: int = 32
    max_new_tokens: int = 64
    device: str | None = None
    dtype: str | None = None
    allow_download: bool = False
    accept_findings: bool = False
    seed: int = 0
    num_resamples: int = 2000
    confidence: float = 0.95


def measure(
    model: str, knowledge: Path, out: Path, settings: MeasureSettings, say: Say = lambda text: None
) -> list[Conductivity]:
    """Measure the conductivity of a model into each language, a taught model per language.

    Writes, per language, OUT/LANGUAGE/model (what was taught), OUT/LANGUAGE/answers/*.jsonl; then OUT/conductivity.jsonl,
    OUT/findings.jsonl and OUT/report.html.

    Args:
        model: the folder of a Hugging Face model or of a run of ours, or a name on the Hub.
        knowledge: a folder in the layout of megalign.clika.knowledge.
        out: the folder to write into.
        settings: how.
        say: told what is being done.

    Raises:
        DataError: the knowledge is not fit to be taught, or the model cannot be opened.
        ConfigError: `out` was begun otherwise, or a language is not in the knowledge.
        EnvironmentProblem: another process measures into `out`.
    """
    there = languages_in(knowledge)
    languages = list(dict.fromkeys(settings.languages)) or there
    if unknown := [language for language in languages if language not in there]:
        raise ConfigError(f"There is no knowledge in {', '.join(unknown)}.", fix=f"{knowledge} has {', '.join(there)}.")
    findings = check_folder(knowledge, languages)
    _refuse_fatal(findings, settings)
    contents = [read_knowledge(knowledge, language)[0] for language in languages]
    for content in contents:
        require_scorable(content)
    about = {
        "Epochs": str(settings.tune.epochs),
        "learning rate": f"{settings.tune.lr:g}",
        "knowledge": _describe(knowledge),
    }
    if not (_is_run(model) or settings.allow_download):
        local_model(model)  # before a folder is made for a name that was mistyped
    make_folder(out)
    with only_process(out / ".lock"):
        results = [_measured(model, content, out / content.language, settings, say) for content in contents]
        write_report(out, _name_of(model), results, findings, about)
    return results


def _measured(model: str, content: Knowledge, folder: Path, settings: MeasureSettings, say: Say) -> Conductivity:
    _teach(model, content, folder, settings, say)
    responses = _ask(content, folder, settings, say)
    return conductivity(
        content,
        responses,
        seed=settings.seed,
        num_resamples=settings.num_resamples,
        confidence=settings.confidence,
    )


def _describe(knowledge: Path) -> str:
    """The set's name; of an invented one also what decides how hard it is."""
    made, name = knowledge / "knowledge.json", knowledge.resolve().name
    if not made.exists():
        return name
    content = read_json(made)
    if not isinstance(content, dict) or not {"places", "continents", "roots"} <= set(content):
        raise DataError(f"{made} does not say places, continents and roots.", fix="Restore it, or remove it.")
    return f"{name}, {content['places']} places on {content['continents']} continents, {content['roots']} roots"


def _is_run(model: str) -> bool:
    return (Path(model) / "checkpoints").is_dir()


def _name_of(model: str) -> str:
    """A run's own name; of other models the folder's."""
    path = Path(model)
    return str(read_yaml(path / "config.yaml")["name"]) if _is_run(model) else path.name or path.resolve().name


def _weights_of(model: str) -> str:
    """16 hex digits that change with the weights of a model's folder; nothing for a name on the Hub."""
    if _is_run(model):
        from megalign.answers.trained_run import run_fingerprint

        return run_fingerprint(Path(model))
    return weights_fingerprint([Path(model)]) if Path(model).is_dir() else ""


def _refuse_fatal(findings: Sequence[Finding], settings: MeasureSettings) -> None:
    fatal = [finding for finding in findings if finding.kind in FATAL]
    if fatal and not settings.accept_findings:
        raise DataError(
            f"{len(fatal)} findings make a score meaningless:\n  " + "\n  ".join(map(str, fatal[:10])),
            "What is taught is not what is asked.",
            "Mend the files, choose other languages, or go on all the same with --accept-findings.",
        )


def _teach(model: str, content: Knowledge, folder: Path, settings: MeasureSettings, say: Say) -> None:
    """Fine-tune, unless the marker says that this was done."""
    marker, target = folder / "taught.json", folder / "model"
    wanted: dict[str, object] = {"model": model, "weights": _weights_of(model), "taught": digest_of(content.train)}
    wanted["settings"] = settings.tune.model_dump(mode="json")
    if marker.exists():
        if changed := differences(read_json(marker), wanted):
            raise ConfigError(
                f"{folder} holds a model that was taught otherwise: {'; '.join(changed)}.",
                "Its answers would be reported under other settings.",
                "Restore them, or choose another folder.",
            )
        say(f"{content.language}: taught before")
        return
    say(f"{content.language}: teaching {len(content.train)} rows, {settings.tune.epochs} epochs")
    log = folder / "tuning.jsonl"
    # Megatron-Core and transformers are each loaded only where they are needed.
    if _is_run(model):
        from megalign.conductivity.tune_run import tune_run

        tune_run(Path(model), content.train, target, settings.tune, log, say)
    else:
        from megalign.conductivity.tune_huggingface import tune_huggingface

        tune_huggingface(
            model,
            content.train,
            target,
            settings.tune,
            log,
            say=say,
            device=settings.device,
            dtype=settings.dtype,
            allow_download=settings.allow_download,
        )
    write_json(marker, wanted)
    # The states a stopped training would have continued from.
    shutil.rmtree(target / STATES, ignore_errors=True)


def _ask(content: Knowledge, folder: Path, settings: MeasureSettings, say: Say) -> dict[str, list[str]]:
    """Responses to the translations and to both languages' questions."""
    asked: dict[str, list[Row]] = {TRANSLATION: [name.row for name in content.names]}
    asked |= {code: [one.row for one in tests] for code, tests in content.tests.items()}
    responses = {}
    with open_model(
        str(folder / "model"),
        device=settings.device,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        allow_download=settings.allow_download,
    ) as model:
        for name, rows in asked.items():
            path = folder / "answers" / f"{name}.jsonl"
            say(f"{content.language}: asking {len(rows)} rows of {name}")
            _answer(model, rows, path, settings, say)
            lines = path.read_text(encoding="utf-8").splitlines()
            responses[name] = [str(json.loads(line)["res"]) for line in lines]
    return responses


def _answer(model: AnswerModel, rows: Sequence[Row], path: Path, settings: MeasureSettings, say: Say) -> None:
    form = settings.tune.form
    items = [Item(number, prompt_of(row, model, form), copied={"label": row.answer}) for number, row in enumerate(rows)]
    # A chat model ends by itself; a plain answer is one line.
    how = Greedy(settings.max_new_tokens, () if form == "chat" else ("\n",))
    answer_items(model, items, path, how, progress=Countdown(say, "row"))
