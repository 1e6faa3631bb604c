"""The tuning loop: one process, or several under `accelerate launch`, with the same result but for rounding.

The loss of an optimizer step is a weighted mean over the global batch: each label weighs 1 (per token), or 1 over the number of its
answer's labels (per example). Every process knows the whole batch, so the sum of weights needs no communication.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megalign.corpus.keyed_random import generator
from megalign.crossin.data.build import MANIFEST
from megalign.crossin.prompts import Template
from megalign.crossin.tuning.examples import Example, Examples, batches, encode, read_rows
from megalign.crossin.tuning.lora import adapted, described_adapter, load_model
from megalign.crossin.tuning.settings import TuneConfig
from megalign.crossin.tuning.state import LOCK, load_state, prepare_folder, restore_folders, save_state, trainable
from megalign.errors import ConfigError, DataError, EnvironmentProblem
from megalign.files import new_folder, only_process, read_json, write_json, write_text
from megalign.hub import num_embeddings, require_known_ids, saving

PACKING_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


@dataclass(frozen=True)
class Tuned:
    """What a run did."""

    adapter: Path
    num_steps: int
    last_loss: float


def tune(
    config: TuneConfig,
    out: Path,
    *,
    stop_after: int | None = None,
    say: Callable[[str], None] = lambda said: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tuned | None:
    """Tune an adapter into `out`; run again to continue.

    Writes out/adapter (adapter_model.safetensors, adapter_config.json, the tokenizer, tune.json), out/metrics.jsonl (a line per step),
    out/state, from which a stopped run continues, and out/merged where asked for.

    Args:
        config: what is tuned on what.
        out: folder of the run.
        stop_after: save the state and return None after this step, as if the run had been stopped there.
        say: gets what is tuned on what, and the result, in words; on the first process alone.
        progress: gets the steps done and all steps; on the first process alone.

    Raises:
        ConfigError: settings that do not fit the model, another run's state or other things in `out`, or `out`
            cannot be a folder.
        DataError: model or data that cannot be used; a loss that is not finite.
        EnvironmentProblem: a library is missing, the model cannot keep packed rows apart, another process tunes into
            `out`, or storage refuses a file.
    """
    accelerator = _accelerator(config)
    if not accelerator.is_main_process:
        return _tune(config, accelerator, out, stop_after, _unsaid, _unsaid)
    prepare_folder(out)
    with only_process(out / LOCK):
        restore_folders(out)
        return _tune(config, accelerator, out, stop_after, say, progress)


def _tune(
    config: TuneConfig,
    accelerator: Any,
    out: Path,
    stop_after: int | None,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Tuned | None:
    model, tokenizer = load_model(config)
    template = None if config.template is None else Template.of(config.template, tokenizer)
    data = encode(read_rows(Path(config.data)), tokenizer, template, config.context_tokens, config.too_long)
    require_known_ids(config.base_model, [max(one.ids) for one in data.examples], num_embeddings(model))
    lost = f"; {data.num_dropped} too long and dropped, {data.num_cut} cut" if data.num_dropped or data.num_cut else ""
    say(f"{config.data}: {len(data.examples)} rows, {sum(one.num_labels for one in data.examples)} labels{lost}")
    # The adapter's start does not depend on what was drawn before.
    torch.manual_seed(_seed(config.seed, "adapter"))
    model, modules = adapted(model, config.lora)
    say(described_adapter(model, modules))
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.to(accelerator.device)
    if config.packing:
        check_packing(model, data.examples, config)
    decayed = [one for one in trainable(model).values() if one.ndim >= 2]
    others = [one for one in trainable(model).values() if one.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate)
    fingerprint = {**config.fingerprint(), "data": data.fingerprint}
    start = load_state(out / "state", model, optimizer, fingerprint)
    run = _Run(config, accelerator, accelerator.prepare_model(model), optimizer, data, out, fingerprint, progress)
    if start:
        say(f"continued after step {start} of {run.num_steps}")
    last_loss = run.steps(start, stop_after)
    if stop_after is not None and stop_after < run.num_steps:
        return None
    if accelerator.is_main_process:
        save_adapter(config, accelerator.unwrap_model(run.model), tokenizer, modules, data, out)
    accelerator.wait_for_everyone()
    say(f"{run.num_steps} steps, last loss {last_loss:.4f}: {out / 'adapter'}")
    return Tuned(out / "adapter", run.num_steps, last_loss)


def _unsaid(*_: Any) -> None:
    """What processes but the first say."""


@dataclass
class _Run:
    config: TuneConfig
    accelerator: Any
    model: Any
    optimizer: torch.optim.Optimizer
    data: Examples
    out: Path
    fingerprint: dict[str, Any]
    progress: Callable[[int, int], None]

    def __post_init__(self) -> None:
        steps = (1 for epoch in range(self.config.epochs) for _ in self._epoch(epoch))
        self.num_steps = sum(islice(steps, self.config.max_steps))

    def _epoch(self, epoch: int) -> Iterator[list[list[int]]]:
        order = generator(self.config.seed, "crossin", "tune", epoch).permutation(len(self.data.examples))
        pack = self.config.context_tokens if self.config.packing else None
        return batches(self.data.examples, order.tolist(), self.config.batch_size, pack)

    def steps(self, start: int, stop_after: int | None) -> float:
        """All steps from `start` on; the last loss."""
        end = min(self.num_steps, stop_after or self.num_steps)
        plan = ((epoch, batch) for epoch in range(self.config.epochs) for batch in self._epoch(epoch))
        lines = _lines_before(self.out / "metrics.jsonl", start)
        last_loss = float(json.loads(lines[-1])["loss"]) if lines else math.nan
        if self.accelerator.is_main_process:
            write_text(self.out / "metrics.jsonl", "".join(lines))
        self.model.train()
        for step, (epoch, batch) in enumerate(plan):
            if step < start:
                continue
            if step >= end:
                break
            begun = time.perf_counter()
            line = self._step(step, batch)
            last_loss = line["loss"]
            line |= {"step": step + 1, "epoch": epoch, "seconds": time.perf_counter() - begun}
            self.progress(step + 1, self.num_steps)
            if self.accelerator.is_main_process:
                with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
                if (step + 1) % self.config.save_steps == 0 or step + 1 == end:
                    unwrapped = self.accelerator.unwrap_model(self.model)
                    save_state(self.out / "state", unwrapped, self.optimizer, step + 1, self.fingerprint)
        return last_loss

    def _step(self, step: int, batch: list[list[int]]) -> dict[str, Any]:
        config, world = self.config, self.accelerator.num_processes
        rank = self.accelerator.process_index
        total = sum(sum(self._weight(place) * self._labels(place) for place in sequence) for sequence in batch)
        rate = learning_rate(config, step, self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_seed(config.seed, "step", step, rank))
        # A process without a sequence of its own takes part with one that weighs nothing.
        mine = batch[rank::world]
        chunks = [mine[at : at + config.micro_batch] for at in range(0, len(mine), config.micro_batch)]
        loss = torch.zeros((), device=self.accelerator.device)
        for number, chunk in enumerate(chunks or [batch[:1]]):
            last = number == max(0, len(chunks) - 1)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                tensors = self._tensors(chunk, weightless=not chunks)
                with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
                    part = weighted_loss(self.model, tensors) / total
                # Processes average their gradients, and the sum is wanted.
                self.accelerator.backward(part * world)
                loss += part.detach()
        norm = self.accelerator.clip_grad_norm_(trainable(self.model).values(), config.clip_gradient)
        value = float(self.accelerator.reduce(loss, "sum"))
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise DataError(
                f"The loss of step {step + 1} is {value}, the gradient's norm {float(norm)}.",
                "The weights were not changed by this step.",
                "Lower learning_rate, or look at the rows of the step.",
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        places = [place for sequence in batch for place in sequence]
        return {
            "loss": value,
            "learning_rate": rate,
            "gradient_norm": float(norm),
            "num_examples": len(places),
            "num_tokens": sum(len(self.data.examples[place].ids) for place in places),
            "num_labels": sum(self._labels(place) for place in places),
        }

    def _labels(self, place: int) -> int:
        return self.data.examples[place].num_labels

    def _weight(self, place: int) -> float:
        return 1.0 if self.config.loss == "token" else 1.0 / self._labels(place)

    def _tensors(self, sequences: Sequence[Sequence[int]], *, weightless: bool) -> dict[str, torch.Tensor]:
        rows = [[self.data.examples[place] for place in sequence] for sequence in sequences]
        scales = [[0.0 if weightless else self._weight(place) for place in sequence] for sequence in sequences]
        tensors = collate(rows, scales, packed=self.config.packing)
        return {name: tensor.to(self.accelerator.device) for name, tensor in tensors.items()}


def learning_rate(config: TuneConfig, step: int, num_steps: int) -> float:
    """Linear warm-up over a share of the steps, then a cosine to 0."""
    warmup = math.ceil(config.warmup * num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def collate(
    rows: Sequence[Sequence[Example]], scales: Sequence[Sequence[float]], *, packed: bool
) -> dict[str, torch.Tensor]:
    """Sequences as tensors [sequences, longest]: input_ids and labels int64, weights float32, and what keeps examples apart.

    Packed, position_ids restart at every example, by which transformers confines attention to it; padding has position 0 throughout.
    Otherwise attention_mask hides the padding. The first token of an example is no label of the one before.
    """
    width = max(sum(len(one.ids) for one in row) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.int64)
    weights = torch.zeros((len(rows), width))
    positions, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for number, (row, row_scales) in enumerate(zip(rows, scales, strict=True)):
        at = 0
        for example, scale in zip(row, row_scales, strict=True):
            end = at + len(example.ids)
            ids[number, at:end] = torch.tensor(example.ids)
            weights[number, at + example.num_prompt_tokens : end] = scale
            positions[number, at:end] = torch.arange(end - at)
            mask[number, at:end] = 1
            at = end
    apart = {"position_ids": positions} if packed else {"attention_mask": mask}
    return {"input_ids": ids, "weights": weights, **apart}


def weighted_loss(model: Any, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum over labels of weight times negative log-likelihood in nats, in float32."""
    inputs = {name: tensor for name, tensor in tensors.items() if name != "weights"}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    labels, weights = tensors["input_ids"][:, 1:], tensors["weights"][:, 1:]
    # Zero weights stay in the graph where a whole batch is weightless, so that every process has gradients to reduce.
    learned = weights > 0 if bool((weights > 0).any()) else torch.ones_like(weights, dtype=torch.bool)
    losses = torch.nn.functional.cross_entropy(logits[learned].float(), labels[learned], reduction="none")
    return (losses * weights[learned]).sum()


def check_packing(model: Any, examples: Sequence[Example], config: TuneConfig) -> None:
    """Compare an example's outputs alone and packed behind another.

    Raises:
        EnvironmentProblem: the model takes no position_ids; or the outputs differ, so packed examples see each other.
    """
    if "position_ids" not in signature(model.get_base_model().forward).parameters:
        raise EnvironmentProblem(
            "The model takes no position_ids, by which packed examples are told apart.", fix="Set packing: false."
        )
    one, other = examples[0], examples[len(examples) // 2]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        packed, alone = (
            {name: tensor.to(model.device) for name, tensor in collate([row], [[1.0] * len(row)], packed=True).items()}
            for row in ([one, other], [other])
        )
        outputs = []
        for tensors in (packed, alone):
            del tensors["weights"]
            outputs.append(model(**tensors, use_cache=False).logits[0, -len(other.ids) :].float())
    model.train(was_training)
    difference = float((outputs[0] - outputs[1]).abs().max())
    if difference > PACKING_TOLERANCE[config.dtype] * float(outputs[1].abs().max()):
        raise EnvironmentProblem(
            f"Packed behind another, an example's outputs change by {difference:.3g}.",
            "This model does not keep packed examples apart: each would be learned with another one before it.",
            "Set packing: false.",
        )


def save_adapter(
    config: TuneConfig, model: Any, tokenizer: Any, modules: dict[str, int], data: Examples, out: Path
) -> None:
    """Write the adapter with its tokenizer and how it was made, and the merged model where asked for.

    tune.json names the template and, for a mix of tools/build_crossin.py, its tag, so that questions are asked as answers were learned.
    """
    manifest = Path(config.data) / MANIFEST
    made = read_json(manifest) if manifest.is_file() else {}
    described = {
        "settings": config.model_dump(),
        "template": config.template or made.get("template"),
        "tag": made.get("tag"),
        "modules": modules,
        "num_examples": len(data.examples),
        "num_dropped": data.num_dropped,
        "num_cut": data.num_cut,
        "data_fingerprint": data.fingerprint,
    }
    # The model's name, not where this machine keeps its copy.
    model.peft_config["default"].base_model_name_or_path = config.base_model
    with saving(out / "adapter"), new_folder(out / "adapter") as folder:
        # Embeddings that are tuned are saved all the same; unless told so, peft asks the Hub whether they were resized.
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        tokenizer.save_pretrained(folder)
        write_json(folder / "tune.json", described)
    if config.merge:
        with saving(out / "merged"), new_folder(out / "merged") as folder:
            model.merge_and_unload().save_pretrained(folder, safe_serialization=True)
            tokenizer.save_pretrained(folder)
            write_json(folder / "tune.json", described)


def _accelerator(config: TuneConfig) -> Any:
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedType
    except ImportError:
        raise EnvironmentProblem("accelerate is not installed.", fix="pip install megalign[hf]") from None
    # Of a process, accelerate keeps one setting for ever; the run's own precision is that of `_step`.
    accelerator = Accelerator(mixed_precision="no", cpu=config.device == "cpu")
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ConfigError(
            f"accelerate is set to {accelerator.distributed_type.value}.",
            "States and adapters are saved from whole parameters.",
            "Use plain data parallelism (accelerate launch --multi_gpu).",
        )
    return accelerator


def _lines_before(path: Path, step: int) -> list[str]:
    """The lines of the steps up to `step`; those that a crash tore are dropped."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    return kept


def _seed(seed: int, *names: str | int) -> int:
    text = "\x1f".join(map(str, ("crossin", seed, *names)))
    return int(np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), dtype=np.int64)[0]) & (2**63 - 1)
