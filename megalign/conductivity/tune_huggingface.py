"""Fine-tune a Hugging Face model with transformers' Trainer: LoRA (peft) or all weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from megalign.answers.huggingface import open_huggingface
from megalign.clika.knowledge import Row
from megalign.conductivity.begun import differences
from megalign.conductivity.log import LOG_STEPS, TuningLog, require_finite
from megalign.conductivity.rows import Example, batches, digest_of, examples_of
from megalign.conductivity.settings import STATES, TuneSettings
from megalign.errors import ConfigError, DataError, EnvironmentProblem
from megalign.files import make_folder, read_json, write_json
from megalign.hub import saving

IGNORED = -100


def tune_huggingface(
    source: str,
    rows: Sequence[Row],
    out: Path,
    settings: TuneSettings,
    log: Path,
    *,
    say: Callable[[str], None] = lambda text: None,
    device: str | None = None,
    dtype: str | None = None,
    allow_download: bool = False,
) -> None:
    """Train a model on rows and write `out`: an adapter's folder, or with "full" a model's. Rerun to continue.

    Args:
        source: a model's folder or name.
        rows: what is taught.
        out: the folder of the taught model; the trainer's checkpoints stand in `out`/training until measure() has ended.
        settings: how.
        log, say: see TuningLog.
        device, dtype, allow_download: see megalign.answers.open_model.

    Raises:
        ConfigError: `out` was begun with other rows or settings; the micro-batch does not divide the batch.
        DataError: the model cannot be opened, or a row does not fit.
        EnvironmentProblem: accelerate or peft is not installed, or storage refuses a file.
        TrainingProblem: the loss is not finite.
    """
    if settings.batch_size % settings.micro_batch_size:
        raise ConfigError(
            f"batch_size {settings.batch_size} is not a multiple of micro_batch_size {settings.micro_batch_size}.",
            fix="Set --micro-batch-size to a divisor of --train-batch-size.",
        )
    if device is not None and device not in ("cpu", "cuda", "cuda:0"):
        raise ConfigError(
            f"device is {device}; the Trainer takes the first GPU it sees.",
            fix="Choose a GPU by CUDA_VISIBLE_DEVICES, and set device to cuda or leave it unset.",
        )
    try:
        peft, transformers, _ = map(import_module, ("peft", "transformers", "accelerate"))
    except ImportError as error:
        raise EnvironmentProblem(
            f"{error.name} is not installed.", "It fine-tunes Hugging Face models.", "pip install megalign[hf]"
        ) from None
    opened = open_huggingface(source, batch_size=1, device=device, dtype=dtype, allow_download=allow_download)
    if hasattr(opened.model, "peft_config"):
        raise ConfigError(
            f"{source} is an adapter.",
            "What is learned on top of it would be saved without it.",
            "Merge it into its model first (peft's merge_and_unload), and teach that.",
        )
    begun = {
        "source": opened.fingerprint,
        "dtype": opened.dtype,
        "taught": digest_of(rows),
        "settings": settings.model_dump(mode="json"),
    }
    examples = examples_of(rows, opened, settings.form)
    order = list(batches(len(examples), settings.batch_size, settings.epochs, settings.seed))
    make_folder(out)
    _agree(out / "tuning.json", begun)
    transformers.set_seed(settings.seed)
    model = _with_lora(peft, opened.model, settings) if settings.method == "lora" else opened.model
    trainer = _trainer(
        transformers,
        model,
        [examples[at] for step in order for at in step],
        filler=opened.end_id or 0,
        arguments=_arguments(transformers, out / STATES, settings, len(order), device),
        told=TuningLog(log, len(order), say),
    )
    result = trainer.train(resume_from_checkpoint=_newest_state(out / STATES))
    require_finite(len(order), result.training_loss)
    with saving(out):
        _save(model, out, source if settings.method == "lora" else None)
        opened.tokenizer.save_pretrained(out)


def _save(model: Any, out: Path, base: str | None) -> None:
    """Write a model, or an adapter over the model `base`."""
    if base is None:
        model.save_pretrained(out)
        return
    # The model's name, not where this machine keeps its copy.
    model.peft_config["default"].base_model_name_or_path = base
    # Embeddings are left as they are; unless told so, peft asks the Hub whether they were resized.
    model.save_pretrained(out, save_embedding_layers=False)


def _newest_state(folder: Path) -> str | None:
    """The trainer's newest checkpoint. One without its state, which is written last, is what a kill left, and is removed."""
    whole: list[Path] = []
    for path in folder.glob("checkpoint-*"):
        try:
            read_json(path / "trainer_state.json")
            whole.append(path)
        except DataError:
            shutil.rmtree(path)
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def _with_lora(peft: Any, model: Any, settings: TuneSettings) -> Any:
    config = peft.LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def _trainer(
    transformers: Any, model: Any, examples: Sequence[Example], *, filler: int, arguments: Any, told: TuningLog
) -> Any:
    """A trainer that reads the examples in the order given, which a resumed run continues."""

    class InOrder(transformers.Trainer):  # type: ignore[misc, name-defined]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(examples)

        def _save_checkpoint(self, *arguments: Any) -> None:
            with saving(Path(self.args.output_dir)):
                super()._save_checkpoint(*arguments)

    class Told(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" in logs:
                told.write(state.global_step, float(logs["loss"]), float(logs["learning_rate"]))

    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=lambda batch: collated(batch, filler),
        callbacks=[Told()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def collated(batch: Sequence[Example], filler: int) -> dict[str, torch.Tensor]:
    """Examples filled up at their right ends: int64 input_ids, attention_mask and labels, [examples, longest]."""
    shape = len(batch), max(len(one.ids) for one in batch)
    ids, mask = torch.full(shape, filler), torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED)
    for number, one in enumerate(batch):
        row = torch.tensor(one.ids)
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
        labels[number, one.num_context : len(row)] = row[one.num_context :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _arguments(transformers: Any, folder: Path, settings: TuneSettings, num_steps: int, device: str | None) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=num_steps,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup_fraction * num_steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        logging_steps=LOG_STEPS,
        logging_nan_inf_filter=False,
        save_steps=settings.save_steps,
        save_total_limit=1,
        seed=settings.seed,
        data_seed=settings.seed,
        report_to=[],
        disable_tqdm=True,
        use_cpu=device == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    # Several visible GPUs would multiply the batch.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _agree(path: Path, begun: dict[str, Any]) -> None:
    if path.exists() and (changed := differences(read_json(path), begun)):
        raise ConfigError(
            f"{path.parent} was begun otherwise: {'; '.join(changed)}.",
            "Continuing would mix two runs.",
            "Restore the settings, or choose another folder.",
        )
    write_json(path, begun)
