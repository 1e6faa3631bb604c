"""One object that trains and reads a model under a parallel layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megalign.config.layout import Layout
from megalign.config.sections import InjectConfig, ModelConfig, OptimizerConfig, PrecisionConfig
from megalign.engine import context, groups
from megalign.engine.batch import LanguageBatch as LanguageBatch
from megalign.engine.classification import LabelledBatch
from megalign.engine.device import DEVICE, StepTimer
from megalign.engine.mcore import finalize_model_grads, get_forward_backward_func, parallel_state
from megalign.engine.model import build_chunks, transformer_config, unwrapped, wrap_for_training
from megalign.engine.optimizer import build_optimizer, build_scheduler, set_step
from megalign.engine.scores import TokenScores, all_ids, best_ids, score_tokens
from megalign.engine.taps import TAGS, DeviceWords, WordTaps
from megalign.errors import TrainingProblem
from megalign.prealign.words import WordBatch


@dataclass(frozen=True)
class StepResult:
    """What a step reports of the global batch, equal on all ranks."""

    loss: float  # mean negative log-likelihood over the targets, nats a token; nan without targets
    nll_by_source: list[float]  # its sum over each source's targets
    targets_by_source: list[float]
    bytes_by_source: list[float]
    level_losses: list[float]  # contrastive loss by level, 0..L+1; empty without words
    grad_norm: float
    lr: float

    @property
    def num_targets(self) -> float:
        """Weight of all targets."""
        return sum(self.targets_by_source)


class NonFiniteStep(TrainingProblem):
    """A step whose loss or gradient is not finite; the weights are those of the step before. Raised on all ranks."""

    def __init__(self, step: int, what: str, why: str = "", fix: str = "") -> None:
        self.step = step
        super().__init__(what, why, fix)


class Engine:
    """A model cut by a layout, with its optimizer.

    Process groups must have been started (`groups.start`) with the same layout. Without `optimizer` the engine only reads.

    Args:
        model, layout, precision: what is built.
        vocab_size: ids of the vocabulary, before padding.
        seed: seed of weights and dropout.
        optimizer: optimizer and schedule of this stage.
        num_steps: length of the schedule, in steps.
        row_sources: golden alignment, see `megalign.engine.weights.initialise`.
        num_labels: labels of a classification head, see `engine.classifier`; 0: there is none.

    Raises:
        ConfigError, EnvironmentProblem: the layout does not divide the model, or the machine lacks what is asked for.
    """

    def __init__(
        self,
        model: ModelConfig,
        layout: Layout,
        precision: PrecisionConfig,
        *,
        vocab_size: int,
        seed: int,
        optimizer: OptimizerConfig | None = None,
        num_steps: int = 1,
        row_sources: np.ndarray | None = None,
        num_labels: int = 0,
    ) -> None:
        self.layout = layout
        self.seed = seed
        self.config = transformer_config(model, layout, precision)
        groups.seed_dropout(seed, 0)
        self._has_dropout = bool(model.hidden_dropout or model.attention_dropout)
        self.chunks = build_chunks(self.config, model, layout, vocab_size, seed, row_sources, num_labels)
        self.taps = WordTaps([unwrapped(chunk) for chunk in self.chunks], self.config)
        self.timer = StepTimer()
        # Called between batches of long measurements, by all ranks equally often; may raise to end them.
        self.interrupt: Callable[[], None] = lambda: None
        self.optimizer: Any = None
        if optimizer is not None:
            cut = layout.parallel.distributed_optimizer
            self.chunks = wrap_for_training(self.config, self.chunks, distributed_optimizer=cut)
            self.config.finalize_model_grads_func = self._finalise
            self.optimizer = build_optimizer(optimizer, self.config, self.chunks, distributed_optimizer=cut)
            self.scheduler = build_scheduler(optimizer, self.optimizer, num_steps)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model, padding included; tied rows once."""
        own = 0
        for chunk in map(unwrapped, self.chunks):
            for parameter in chunk.parameters():
                cut = getattr(parameter, "tensor_model_parallel", False)
                if not getattr(parameter, "shared", False) and (
                    cut or parallel_state.get_tensor_model_parallel_rank() == 0
                ):
                    own += parameter.numel()
        total = torch.tensor([own], dtype=torch.int64, device=DEVICE)
        dist.all_reduce(total, group=parallel_state.get_model_parallel_group())
        return int(total.item())

    def step(
        self,
        batches: Sequence[LanguageBatch | WordBatch],
        step: int,
        *,
        lm_weight: float = 1.0,
        inject: InjectConfig | None = None,
        num_sources: int = 1,
    ) -> StepResult:
        """One optimizer step on this data-parallel rank's micro-batches.

        The gradient is exactly that of `lm_weight` x (mean negative log-likelihood over all targets of the global batch)
        + the contrastive losses of the global batch of words: everything is normalised by global numbers before the
        backward pass, and gradients are only summed, so the layout does not enter.

        Args:
            batches: micro-batches, whole, in the same order on every rank that shares them.
            step: number of this step, from 1: decides learning rate and dropout.
            lm_weight: weight of the language-modelling loss.
            inject: settings of the contrastive loss; needed with words.
            num_sources: sources that the windows of text come from.

        Raises:
            ConfigError: interleaving does not divide the micro-batches.
            NonFiniteStep: the loss or the gradient is not finite; the weights are those of the step before.
        """
        self._begin(len(batches), step)
        text = [batch for batch in batches if isinstance(batch, LanguageBatch)]
        counts = sum((batch.count_by_source(num_sources) for batch in text), start=np.zeros((2, num_sources)))
        self.timer.end()
        targets, num_bytes = groups.sum_over_replicas(torch.from_numpy(counts).to(DEVICE)).tolist()
        self.timer.begin()
        num_targets = sum(targets)
        batches = _own_parts(batches)
        language_loss = partial(_language_loss, weight=lm_weight / max(num_targets, 1.0))
        words = [batch for batch in batches if isinstance(batch, WordBatch)]
        if words:
            if inject is None:
                raise ValueError("batches of words need the settings of the contrastive loss")
            weights = inject.level_weights(self.taps.num_levels)
            scale = self.optimizer.scale_loss(torch.ones((), device=DEVICE)).reshape(())
            with self.taps.training(words, temperature=inject.temperature, weights=weights, loss_scale=scale) as ready:
                reports = self._run(batches, ready, language_loss, self._word_loss)
        else:
            reports = self._run(batches, [], language_loss, None)
        nll = self._nll_by_source(batches, reports, num_sources)
        level_losses = self._level_losses() if words else []
        loss = sum(nll) / num_targets if num_targets else float("nan")
        grad_norm, lr = self._update(step, loss if num_targets else 0.0, level_losses)
        return StepResult(loss, nll, targets, num_bytes, level_losses, grad_norm, lr)

    def _begin(self, num_batches: int, step: int) -> None:
        self.layout.check_micro_batches(num_batches)
        self.timer.begin()
        if self._has_dropout:
            groups.seed_dropout(self.seed, step)
        for chunk in self.chunks:
            chunk.zero_grad_buffer()  # type: ignore[operator]
        self.optimizer.zero_grad()

    @staticmethod
    def _nll_by_source(
        batches: Sequence[LanguageBatch | WordBatch], reports: list[Any], num_sources: int
    ) -> list[float]:
        """Sums over all ranks; only the last stage has reports, one for each micro-batch in order."""
        total = torch.zeros(num_sources, dtype=torch.float64, device=DEVICE)
        for batch, report in zip(batches, reports, strict=False):
            if isinstance(batch, LanguageBatch):
                rows = report["nll"]
                sources = np.zeros(len(rows), dtype=np.int64) if batch.sources is None else batch.sources
                total.index_add_(0, torch.from_numpy(sources).to(DEVICE), rows)
        total = groups.broadcast_from_last_stage(groups.sum_over_data_parallel(total))
        return [float(value) for value in total]

    def _update(self, step: int, loss: float, level_losses: list[float]) -> tuple[float, float]:
        """Clip and step the optimizer, unless something is not finite."""
        set_step(self.scheduler, step)
        self.optimizer.prepare_grads()
        clip = self.optimizer.config.clip_grad
        norm = self.optimizer.clip_grad_norm(clip) if clip > 0 else self.optimizer.get_grad_norm()
        grad_norm = float(norm)
        if not np.isfinite([loss, grad_norm, *level_losses]).all():
            raise NonFiniteStep(
                step,
                f"Step {step}: loss {loss}, gradient norm {grad_norm}"
                + (f", contrastive losses {level_losses}" if level_losses else "")
                + ": not finite.",
                "The step was not taken; the weights are those of the step before.",
                "Lower the learning rate, lengthen the warm-up, or look at the batch of this step.",
            )
        self.optimizer.step_with_ready_grads()
        lr = max(float(group["lr"]) for group in self.optimizer.param_groups)
        return grad_norm, lr

    def _finalise(self, chunks: list[Any], num_tokens: Any = None, **kwargs: Any) -> None:
        """Megatron's reduction of gradients without its division by tokens: the loss is normalised already."""
        self.timer.end()
        finalize_model_grads(chunks, None, **kwargs)

    def nonfinite_parameters(self) -> tuple[list[str], list[str]]:
        """Names of this rank's parameters with gradients that are not finite, and with such weights."""
        gradients, weights = [], []
        for number, chunk in enumerate(map(unwrapped, self.chunks)):
            for name, parameter in chunk.named_parameters():
                name = f"chunk {number}: {name}" if len(self.chunks) > 1 else name
                gradient = getattr(parameter, "main_grad", None)
                if gradient is not None and not bool(gradient.isfinite().all()):
                    gradients.append(name)
                if not bool(parameter.isfinite().all()):
                    weights.append(name)
        return gradients, weights

    def score(
        self,
        batches: Sequence[LanguageBatch],
        ranges: dict[str, tuple[int, int]] | None = None,
        num_ids: int | None = None,
    ) -> list[TokenScores]:
        """Negative log-likelihood of every label, and the probability mass on ranges of ids.

        Args:
            batches: of equal shape; every rank that shares a model part gives the same.
            ranges: name -> ids [first, last + 1).
            num_ids: see `score_tokens`.

        Returns:
            a TokenScores for every batch, on every rank.
        """
        names = list(ranges or {})
        spans = [(ranges or {})[name] for name in names]

        def collect(batch: LanguageBatch, logits: torch.Tensor) -> torch.Tensor:
            return score_tokens(logits, torch.from_numpy(batch.labels).to(DEVICE), spans, num_ids)

        outputs = self._read(batches, [], collect)
        rows = 1 + len(names) + (num_ids is not None)
        stacked = torch.zeros(len(batches), rows, *batches[0].tokens.shape, device=DEVICE)
        if outputs:
            stacked = context.gather_positions(torch.stack(outputs)).contiguous()
        stacked = groups.broadcast_from_last_stage(stacked).cpu()
        return [
            TokenScores(
                scores[0].numpy(),
                {name: scores[1 + k].numpy() for k, name in enumerate(names)},
                None if num_ids is None else scores[-1].numpy() > 0,
            )
            for scores in stacked
        ]

    def logits(self, batch: LanguageBatch, num_ids: int) -> torch.Tensor:
        """The logits of windows, for comparisons with other implementations.

        Args:
            batch: every rank that shares a model part gives the same.
            num_ids: only ids below it, those that are no padding of the vocabulary.

        Returns:
            float32 [windows, sequence, num_ids] in host memory, on every rank.
        """
        outputs = self._read([batch], [], lambda _, own: all_ids(own)[..., :num_ids])
        whole = torch.zeros(*batch.tokens.shape, num_ids, device=DEVICE)
        if outputs:
            whole = context.gather_positions(outputs[0].movedim(1, -1)).movedim(-1, 1).contiguous()
        return groups.broadcast_from_last_stage(whole).cpu()

    def most_likely(
        self, batch: LanguageBatch, positions: np.ndarray, num_ids: int, noise: np.ndarray | None = None
    ) -> np.ndarray:
        """The id with the largest logit at one position of every row, the lowest of equals.

        Args:
            batch: every rank that shares a model part gives the same.
            positions: int64 [windows].
            num_ids: only ids below it, those that are no padding of the vocabulary.
            noise: float32 [windows, num_ids], added to the logits: Gumbel noise makes the answer a draw.

        Returns:
            int64 [windows], on every rank.
        """
        added = None if noise is None else torch.from_numpy(noise).to(DEVICE)
        own = context.own_positions(batch.tokens.shape[1])
        places = torch.from_numpy(np.searchsorted(own, positions).clip(max=len(own) - 1))
        rows = torch.arange(len(positions))
        outputs = self._read([batch], [], lambda _, logits: best_ids(logits[rows, places], num_ids, added))
        best = torch.zeros(len(positions), dtype=torch.int64, device=DEVICE)
        if outputs:
            best = context.from_owners(outputs[0], positions, own)
        return groups.broadcast_from_last_stage(best).cpu().numpy()

    def represent(self, batches: Sequence[WordBatch]) -> list[np.ndarray]:
        """The vectors of words at every level: float32 [levels, words, hidden size] for each batch, on every rank."""
        with self.taps.capturing(batches) as ready:
            self._read(batches, ready, None)
            result = []
            for words, levels in zip(ready, self.taps.vectors, strict=True):
                vectors = torch.zeros(self.taps.num_levels, len(words.lengths), self.config.hidden_size, device=DEVICE)
                for level, rows in levels.items():
                    vectors[level] = rows
                group = parallel_state.get_pipeline_model_parallel_group()
                if group.size() > 1:
                    dist.all_reduce(vectors, group=group)
                result.append(vectors.cpu().numpy())
        return result

    def _word_loss(self, chunk: Any, words: DeviceWords, hidden: torch.Tensor) -> tuple[Any, ...]:
        """The output rows' loss; `hidden` joins with weight 0 so that the backward pass reaches the layers' losses."""
        loss = self.taps.output_loss(chunk, words) + hidden.sum() * 0.0
        return loss, ONE.clone(), {"nll": torch.zeros((), dtype=torch.float64, device=DEVICE)}

    def _level_losses(self) -> list[float]:
        losses = self.taps.level_losses.clone()
        group = parallel_state.get_pipeline_model_parallel_group()
        if group.size() > 1:
            dist.all_reduce(losses, group=group)
        return [float(value) for value in losses]

    def _run(
        self,
        batches: Sequence[LanguageBatch | WordBatch],
        ready: list[DeviceWords],
        language_loss: Callable[..., Any],
        word_loss: Callable[..., Any] | None,
    ) -> list[Any]:
        def forward(iterator: Iterator[Any], model: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
            batch = next(iterator)
            if isinstance(batch, DeviceWords):
                hidden = _forward_words(model, batch)
                return hidden, partial(word_loss or _no_loss, unwrapped(model), batch)
            tokens, labels, mask = (
                torch.from_numpy(array).to(DEVICE) for array in (batch.tokens, batch.labels, batch.loss_mask)
            )
            return model(tokens, positions_of(tokens), None, labels=labels), partial(language_loss, mask)

        return self._schedule(batches, ready, forward, forward_only=False)

    @torch.no_grad()
    def _read(
        self,
        batches: Sequence[LanguageBatch | WordBatch],
        ready: list[DeviceWords],
        collect: Callable[[LanguageBatch, torch.Tensor], torch.Tensor] | None,
    ) -> list[torch.Tensor]:
        def forward(iterator: Iterator[Any], model: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
            batch = next(iterator)
            if isinstance(batch, DeviceWords):
                chunk = unwrapped(model)
                if chunk.post_process:
                    self.taps.capture_output_rows(chunk, batch)
                return _forward_words(model, batch), lambda hidden, non_loss_data: hidden.new_zeros(())
            tokens = torch.from_numpy(batch.tokens).to(DEVICE)
            logits = model(tokens, positions_of(tokens), None)
            assert collect is not None
            return logits, lambda output, non_loss_data: collect(batch, output)

        # Interleaved stages pass micro-batches in groups: fill the last group with repetitions and drop their results.
        lacking = -len(batches) % self.layout.parallel.pipeline if self.layout.parallel.virtual_pipeline else 0
        padded = _own_parts([*batches, *[batches[-1]] * lacking])
        for chunk in self.chunks:
            chunk.eval()
        # Reading is not what FP8 is for: short batches of any shape, and numbers that are compared between models.
        fp8, self.config.fp8 = self.config.fp8, None
        try:
            outputs = self._schedule(padded, [*ready, *ready[-1:] * lacking], forward, forward_only=True)
        finally:
            self.config.fp8 = fp8
            for chunk in self.chunks:
                chunk.train()
        return outputs[: len(batches)]

    def _schedule(
        self,
        batches: Sequence[LanguageBatch | WordBatch] | Sequence[LabelledBatch],
        ready: list[DeviceWords],
        forward: Callable[..., Any],
        *,
        forward_only: bool,
    ) -> list[Any]:
        """Run Megatron's pipeline schedule over the micro-batches, words replaced by their device form."""
        words = iter(ready)
        items = [next(words) if isinstance(batch, WordBatch) else batch for batch in batches]
        shape = next(batch.tokens.shape for batch in batches)
        interleaved = len(self.chunks) > 1
        result: list[Any] = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=[iter(items) for _ in self.chunks] if interleaved else iter(items),
            model=self.chunks if interleaved else self.chunks[0],
            num_microbatches=len(items),
            seq_length=shape[1],
            micro_batch_size=shape[0],
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )
        return result


ONE = torch.ones((), dtype=torch.int)


def _language_loss(mask: torch.Tensor, nll: torch.Tensor, *, weight: float) -> tuple[Any, ...]:
    rows = (nll.float() * mask).sum(dim=1)
    return rows.sum() * weight, ONE.clone(), {"nll": rows.detach().double()}


def _no_loss(*_: Any) -> tuple[Any, ...]:
    raise ValueError("a batch of words came without a contrastive loss")


def _own_parts(batches: Sequence[LanguageBatch | WordBatch]) -> list[LanguageBatch | WordBatch]:
    """Text cut to this context-parallel rank's positions; words are dealt out when they are moved to the device."""
    return [context.own_part(batch) if isinstance(batch, LanguageBatch) else batch for batch in batches]


def positions_of(tokens: torch.Tensor) -> torch.Tensor:
    """Positions in the whole window of this context-parallel rank's tokens, int64 like `tokens`."""
    own = torch.from_numpy(context.own_positions(tokens.size(1) * context.size()))
    return own.to(tokens.device)[None].expand_as(tokens)


def _forward_words(model: Any, words: DeviceWords) -> torch.Tensor:
    """Hidden states of packed words."""
    rotary = getattr(unwrapped(model), "rotary_pos_emb", None)
    hook = rotary and rotary.register_forward_pre_hook(context.whole_rotary_rows, with_kwargs=True)
    try:
        return hidden_states(
            model, words.tokens, words.position_ids, words.attention_mask, extra_block_kwargs={TAGS: words.tags}
        )
    finally:
        if hook:
            hook.remove()


def hidden_states(model: Any, *arguments: Any, **more: Any) -> torch.Tensor:
    """The model's output without its output layer: the logits are not computed."""
    chunk = unwrapped(model)
    post_process, chunk.post_process = chunk.post_process, False
    try:
        hidden: torch.Tensor = model(*arguments, **more)
    finally:
        chunk.post_process = post_process
    return hidden
