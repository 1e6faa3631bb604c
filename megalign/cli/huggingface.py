"""`megalign export` and `megalign import`: runs as Hugging Face folders, and Hugging Face models as what runs start from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer


@contextmanager
def _memory_told() -> Iterator[None]:
    """Say where memory ran out that both models are held whole."""
    from megalign.engine.device import out_of_memory
    from megalign.errors import EnvironmentProblem

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error) is None:
            raise
        raise EnvironmentProblem(
            f"There is not enough memory here: {' '.join(str(error).split())}",
            "Both models are held whole, in float32, to compare their logits. Nothing was written.",
            "Use a machine with more memory.",
        ) from error


def export(
    run: Annotated[
        Path, typer.Argument(help="A run's folder (its newest checkpoint), an imported model's, or a checkpoint.")
    ],
    out: Annotated[Path, typer.Argument(help="New folder that gets the Hugging Face model.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Another checkpoint of the run, e.g. step_00001000.")] = None,
    store: Annotated[Path | None, typer.Option(help="Where the run's token store stands now.")] = None,
) -> None:
    """Write a checkpoint, trained under any layout, as a Hugging Face folder: safetensors, config, tokenizer, model card.

    GPT-2 where positions are learned, GPT-NeoX where they are rotary, Llama where RMSNorm, SwiGLU and no biases come with
    them. The vocabulary's padding is left out, tied embeddings stay tied. The written model is read back and its logits
    are compared with the checkpoint's on the run's own text; where they differ nothing is left. Takes memory for both
    models in float32.

    Example: `megalign export runs/demo/runs/prealign/seed0 exported`
    """
    from megalign.evaluation.huggingface import export_run
    from megalign.study.worker import leaving_on_request

    path = checkpoint or run
    if checkpoint is not None and not checkpoint.exists() and checkpoint.name == str(checkpoint):
        found = sorted(run.glob(f"checkpoints/*/{checkpoint}"))
        path = found[-1] if found else checkpoint
    with leaving_on_request(), _memory_told():
        done = export_run(path, out, store=store, say=lambda text: print(text, flush=True))
    print(f"{done.parity}")
    print(f"{done.folder}: {done.model_class}, {done.vocab_size} ids")


def import_(
    model: Annotated[str, typer.Argument(help="Folder of a Hugging Face model, or a name that was downloaded.")],
    out: Annotated[Path, typer.Argument(help="New folder: model.yaml, tokenizer.json, a checkpoint of weights.")],
    language: Annotated[list[str] | None, typer.Option(help="Languages of the vocabulary; may be repeated.")] = None,
    eos_token: Annotated[str | None, typer.Option(help="Default: the tokenizer's.")] = None,
    vocab_size_multiple: Annotated[
        int | None,
        typer.Option(min=1, help="Pad the vocabulary to a multiple of this, so that tensor parallelism divides it."),
    ] = None,
) -> None:
    """Write a GPT-2, Llama or (sequential) GPT-NeoX model as weights that a run starts from.

    A run takes the model section of OUT/model.yaml and `initial_weights: OUT`, and a token store built with
    OUT/tokenizer.json. The logits of the written weights are compared with those of the Hugging Face model; where they
    differ nothing is left. Takes memory for both models in float32.

    Example: `megalign import gpt2-folder start --language en --language de`
    """
    from megalign.evaluation.huggingface import import_model
    from megalign.study.worker import leaving_on_request

    with leaving_on_request(), _memory_told():
        done = import_model(
            model,
            out,
            languages=language or (),
            eos_token=eos_token,
            vocab_size_multiple=vocab_size_multiple,
            say=lambda text: print(text, flush=True),
        )
    print(f"{done.parity}")
    if done.num_dropped_rows:
        print(f"{done.num_dropped_rows} rows of the embedding belong to no id of the tokenizer and were left out")
    padded = done.model.padded_vocab_size(done.vocab_size)
    if padded > done.vocab_size:
        print(f"{padded - done.vocab_size} rows of padding have a probability of {done.padding_mass:.2e} together")
    print(f"{done.folder}: {done.vocab_size} ids; start runs from it with initial_weights={done.folder}")
