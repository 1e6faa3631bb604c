"""`megalign clika`: ask models CLiKA's questions, check invented knowledge, measure how it is conducted between languages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

clika_app = typer.Typer(no_args_is_help=True, help="Cross-lingual knowledge alignment: answers and conductivity.")

Model = Annotated[str, typer.Argument(help="Folder of a Hugging Face model, a PEFT adapter or a run; or a Hub name.")]
Out = Annotated[Path, typer.Option(help="The folder to write into.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; unset: the GPU where there is one.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16; unset: as the weights are stored.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows answered at once.")]
AllowDownload = Annotated[bool, typer.Option(help="May fetch the model from the Hub by its name.")]
Seed = Annotated[int, typer.Option(help="Of the row order, of new weights, of the bootstrap.")]


def _quiet() -> None:
    """Leave out what libraries say about their own future, and their bars where nobody watches."""
    import logging
    import os
    import sys
    import warnings

    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("megatron").setLevel(logging.ERROR)


@clika_app.command("answer")
def answer(
    model: Model,
    questions: Annotated[Path, typer.Argument(help="Folder DATASET/LANGUAGE/*.jsonl, or a parquet, csv, jsonl table.")],
    out: Out,
    mode: Annotated[str, typer.Option(help="text: greedy; letters: the most likely option letter.")] = "text",
    prompt: Annotated[str, typer.Option(help="For tables: example (base models) or plain (chat models).")] = "example",
    chat: Annotated[bool, typer.Option(help="Put the prompt into the model's chat template.")] = False,
    files: Annotated[str, typer.Option(help="The file of questions, where a folder has several.")] = "*.jsonl",
    datasets: Annotated[Path | None, typer.Option(help="YAML with more data sets and languages.")] = None,
    name: Annotated[str | None, typer.Option(help="Model name in the file names; unset: the model's own.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer; the scorer reads how it starts.")] = 8,
    batch_size: BatchSize = 16,
    device: Device = None,
    dtype: Dtype = None,
    truncate: Annotated[
        bool, typer.Option(help="Cut long prompts at their start; otherwise they are an error.")
    ] = False,
    allow_download: AllowDownload = False,
) -> None:
    """Answer multiple-choice questions into OUT/DATASET/LANGUAGE/MODEL_res.jsonl, ready to be scored. Rerun to continue.

    Example: `megalign clika answer runs/my-model clika-questions --files 'llama_7b_res*' --out runs/answers`, then
    `python tools/score_clika.py runs/answers --out runs/scores`.
    """
    from megalign.answers.questions import AnswerSettings, answer_questions
    from megalign.cli.progress import bar
    from megalign.clika import load_protocol
    from megalign.clika.questions import read_questions

    _quiet()
    settings = AnswerSettings(mode=mode, chat=chat, max_new_tokens=max_new_tokens, name=name)
    found = read_questions(questions, load_protocol(datasets), files=files, form=prompt)
    with bar(sum(len(one.questions) for one in found), "questions") as update:
        written = answer_questions(
            model,
            found,
            out,
            settings,
            update,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            truncate=truncate,
            allow_download=allow_download,
        )
    print(f"{len(written)} files of answers in {out}")


@clika_app.command("check")
def check(
    knowledge: Annotated[Path, typer.Argument(help="Folder with train/, test/target/ and test/Translate/.")],
    language: Annotated[list[str] | None, typer.Option(help="Code to check; may stand often; unset: all.")] = None,
) -> None:
    """Check knowledge for the conductivity test: what is taught must be what is asked. Ends with 3 where it is not."""
    from megalign.clika.knowledge import languages_in
    from megalign.clika.knowledge_checks import FATAL, KINDS, check_folder
    from megalign.errors import DataError

    findings = check_folder(knowledge, language or languages_in(knowledge))
    for finding in findings:
        print(finding)
    for kind in dict.fromkeys(finding.kind for finding in findings):
        print(f"{sum(one.kind == kind for one in findings):>6} x {kind}: {KINDS[kind]}")
    fatal = [finding for finding in findings if finding.kind in FATAL]
    if fatal:
        raise DataError(f"{len(fatal)} of {len(findings)} findings make a conductivity score meaningless.")
    print(f"{knowledge}: {len(findings)} finding(s), none of which forbids a score")


@clika_app.command("conductivity")
def conductivity(
    model: Annotated[str, typer.Argument(help="Folder of a Hugging Face model or a run; or a Hub name.")],
    knowledge: Annotated[Path, typer.Argument(help="Folder that tools/make_knowledge.py wrote, or the released set.")],
    out: Out,
    language: Annotated[
        list[str] | None, typer.Option(help="Code beside English; may stand often; unset: all.")
    ] = None,
    method: Annotated[str, typer.Option(help="lora or full; runs of ours are always trained in full.")] = "lora",
    form: Annotated[str, typer.Option(help="plain, or chat for the model's chat template.")] = "plain",
    epochs: Annotated[int, typer.Option(help="Times every row is seen.")] = 3,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-4,
    train_batch_size: Annotated[int, typer.Option(help="Rows in an optimizer step.")] = 16,
    micro_batch_size: Annotated[int, typer.Option(help="Rows of it computed at once.")] = 16,
    lora_rank: Annotated[int, typer.Option(help="Rank of LoRA's matrices; alpha is twice that.")] = 64,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints a stopped run continues from.")] = 200,
    batch_size: BatchSize = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    device: Device = None,
    dtype: Dtype = None,
    accept_findings: Annotated[bool, typer.Option(help="Go on although the checks found fatal faults.")] = False,
    allow_download: AllowDownload = False,
    seed: Seed = 0,
) -> None:
    """Teach a model invented knowledge, ask it in two languages, report XRR or which gate failed. Rerun to continue.

    Example: `python tools/make_knowledge.py --out runs/knowledge --language de`, then
    `megalign clika conductivity runs/my-model runs/knowledge --out runs/conductivity`.
    """
    from megalign.clika.conductivity_report import summary_line
    from megalign.conductivity import MeasureSettings, TuneSettings, measure
    from megalign.config.load import validate

    _quiet()
    tune = validate(
        TuneSettings,
        {
            "method": method,
            "form": form,
            "epochs": epochs,
            "lr": lr,
            "batch_size": train_batch_size,
            "micro_batch_size": min(micro_batch_size, train_batch_size),
            "lora_rank": lora_rank,
            "lora_alpha": 2 * lora_rank,
            "save_steps": save_steps,
            "seed": seed,
        },
        "the options",
    )
    settings = MeasureSettings(
        tune=tune,
        languages=tuple(language or ()),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        device=device,
        dtype=dtype,
        allow_download=allow_download,
        accept_findings=accept_findings,
        seed=seed,
    )
    console = Console(highlight=False, soft_wrap=True)
    for result in measure(model, knowledge, out, settings, console.print):
        console.print(summary_line(result))
    console.print(f"report: {out / 'report.html'}")
