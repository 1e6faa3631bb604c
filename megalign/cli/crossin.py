"""`megalign crossin`: tune adapters on cross-lingual instruction data, and ask models the same questions in several languages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Cross-lingual instruction tuning and evaluation. Data: tools/build_crossin.py; scores: tools/score_consistency.py.",
)


def _quiet(allow_download: bool = False) -> None:
    """Leave out what libraries say about their own future, and their bars but those of downloads."""
    import os
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    if not allow_download:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@app.command()
def tune(
    config: Annotated[Path, typer.Argument(help="Settings, e.g. examples/crossin/tune.yml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings that replace the file's, as key=value.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/crossin"),
) -> None:
    """Tune a LoRA adapter. Rerun to continue.

    Example: `megalign crossin tune tune.yml base_model=FOLDER data=runs/mix lora.rank=16 --out runs/x2x`

    On several GPUs: `accelerate launch --multi_gpu -m megalign crossin tune tune.yml`
    """
    from megalign.cli.progress import late_bar
    from megalign.crossin.tuning.settings import load_tune
    from megalign.crossin.tuning.train import tune as run

    _quiet()
    settings = load_tune(config, overrides or [])
    with late_bar("steps") as shown:
        run(settings, out, say=print, progress=shown)


@app.command("eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="Folder of a Hugging Face model, an adapter, a tuning run, or a run of ours.")
    ],
    questions: Annotated[
        str, typer.Argument(help="Questions in SeaEval's row format; or cross_mmlu, cross_logiqa, cross_xquad.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    mode: Annotated[str, typer.Option(help="text (greedy answers) or likelihood (the most likely option).")] = "text",
    options: Annotated[
        str, typer.Option(help="What likelihood compares: letter; choice or text (per token, with and without letter).")
    ] = "letter",
    template: Annotated[str | None, typer.Option(help="Default: that of the adapter's training, else plain.")] = None,
    prompt: Annotated[str | None, typer.Option(help="With {question}, {choices} and {context}.")] = None,
    tag: Annotated[
        str, typer.Option(help="Asks for the question's language: trained (that of the adapter's data), or [{code}].")
    ] = "",
    languages: Annotated[str, typer.Option(help="Of the file, comma-separated. Default: all.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of a text answer.")] = 32,
    first_line: Annotated[bool, typer.Option(help="End an answer at its first line.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many questions.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: the GPU where there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Default: as stored.")] = None,
    allow_download: Annotated[bool, typer.Option(help="May fetch model and questions by name.")] = False,
) -> None:
    """Ask a model all questions in all languages, write OUT/predictions.json and score it. Rerun to continue.

    Example: `megalign crossin eval runs/x2x cross_mmlu.json --out runs/answers/x2x`; several models are compared by
    `python tools/score_consistency.py runs/answers/*/predictions.json --out runs/scores`.
    """
    from megalign.answers import open_model
    from megalign.cli.progress import late_bar
    from megalign.crossin.questions import AskOptions, ask, prepare
    from megalign.crossin.scoring import ScoreOptions, score_files
    from megalign.files import make_folder

    _quiet(allow_download)
    if (Path(model) / "adapter" / "adapter_config.json").is_file():
        model = str(Path(model) / "adapter")
    chosen = AskOptions(
        mode,
        options,
        template,
        prompt,
        tag,
        tuple(filter(None, languages.split(","))),
        max_new_tokens,
        limit,
        first_line,
    )
    asked = prepare(model, questions, chosen, allow_download=allow_download)
    make_folder(out)
    with (
        open_model(model, device=device, dtype=dtype, batch_size=batch_size, allow_download=allow_download) as opened,
        late_bar("answers") as shown,
    ):
        path = ask(opened, asked, out, shown)
    result = score_files([str(path)], out, ScoreOptions(by="likelihood" if mode == "likelihood" else "text"))
    row = result.scored[0].row
    s = str(min(3, len(row["languages"])))
    print(f"accuracy {row['accuracy']:.3f}, invalid {row['invalid_rate']:.3f}", end="")
    if s in row["consistency"]:
        print(f", consistency_{s} {row['consistency'][s]:.3f}, AC3_{s} {row['ac3'][s]:.3f}", end="")
    print(f": {out / 'report.html'}")
