"""The parallel layout: degrees, divisibility, coordinates. No torch: planners and launchers use it too."""

from __future__ import annotations

from dataclasses import dataclass

from megalign.config.sections import ModelConfig, ParallelConfig, PrecisionConfig
from megalign.errors import ConfigError

# Both sides of a matrix product in FP8 are multiples of this (TransformerEngine's documentation); MXFP8 scales blocks of 32.
_FP8_MULTIPLES = {"mxfp8": 32}
_FP8_MULTIPLE = 16


@dataclass(frozen=True)
class Coordinates:
    """Where a rank stands in the layout."""

    tensor: int
    context: int
    data: int
    pipeline: int


@dataclass(frozen=True)
class Layout:
    """Tensor x context x data x pipeline ranks, numbered with tensor fastest and pipeline slowest (Megatron's order)."""

    parallel: ParallelConfig

    @property
    def world_size(self) -> int:
        """Number of processes."""
        p = self.parallel
        return p.tensor * p.context * p.data * p.pipeline

    @property
    def num_chunks(self) -> int:
        """Model chunks a stage holds."""
        return self.parallel.virtual_pipeline or 1

    def coordinates(self, rank: int) -> Coordinates:
        """The place of `rank`."""
        p = self.parallel
        rank, tensor = divmod(rank, p.tensor)
        rank, context = divmod(rank, p.context)
        pipeline, data = divmod(rank, p.data)
        return Coordinates(tensor, context, data, pipeline)

    def check(self, model: ModelConfig) -> None:
        """Refuse a layout that does not divide the model.

        Raises:
            ConfigError: naming the degree and the value it must divide.
        """
        p = self.parallel
        _divides("parallel.tensor", p.tensor, "model.num_attention_heads", model.num_attention_heads)
        if model.num_query_groups:
            _divides("parallel.tensor", p.tensor, "model.num_query_groups", model.num_query_groups)
        _divides("parallel.tensor", p.tensor, "model.ffn_hidden_size", model.ffn_hidden_size)
        _divides("parallel.tensor", p.tensor, "model.vocab_size_multiple", model.vocab_size_multiple)
        if p.virtual_pipeline and p.pipeline == 1:
            raise ConfigError(
                f"parallel.virtual_pipeline is {p.virtual_pipeline} with parallel.pipeline 1.",
                "Interleaving needs at least two stages.",
                "Unset parallel.virtual_pipeline or raise parallel.pipeline.",
            )
        if p.virtual_pipeline == 1:
            raise ConfigError(
                "parallel.virtual_pipeline is 1.",
                "One chunk a stage is the plain schedule, without interleaving.",
                "Unset parallel.virtual_pipeline, or set it to 2 or more.",
            )
        chunks = p.pipeline * self.num_chunks
        name = "parallel.pipeline x parallel.virtual_pipeline" if p.virtual_pipeline else "parallel.pipeline"
        if not p.uneven_stages:
            more = " parallel.uneven_stages=true lets stages differ by one layer." if chunks < model.num_layers else ""
            _divides(name, chunks, "model.num_layers", model.num_layers, more)
        elif chunks > model.num_layers:
            raise ConfigError(
                f"{name} is {chunks}, with model.num_layers {model.num_layers}.",
                "Every stage must hold a layer.",
                f"Set {name} to at most {model.num_layers}.",
            )
        if p.sequence_parallel:
            if p.tensor == 1:
                raise ConfigError(
                    "parallel.sequence_parallel is on with parallel.tensor 1.",
                    "Sequence parallelism cuts activations between tensor-parallel ranks.",
                    "Turn it off, or raise parallel.tensor.",
                )
            _divides("parallel.tensor", p.tensor, "model.sequence_length", model.sequence_length)
        if p.context > 1:
            _divides("2 x parallel.context", 2 * p.context, "model.sequence_length", model.sequence_length)
            if p.sequence_parallel:
                both = "parallel.tensor x parallel.context"
                _divides(both, p.tensor * p.context, "model.sequence_length", model.sequence_length)

    def layers_of_chunks(self, num_layers: int) -> list[int]:
        """Layers of every model chunk, in the order in which a micro-batch goes through them.

        Where they cannot be equal, inner chunks get one more first, then the first, which also embeds; the last, which
        computes the output and the loss, gets one last.
        """
        chunks = self.parallel.pipeline * self.num_chunks
        least, more = divmod(num_layers, chunks)
        order = [*range(1, chunks - 1), 0, chunks - 1]
        return [least + (chunk in order[:more]) for chunk in range(chunks)]

    def check_fp8(self, model: ModelConfig, precision: PrecisionConfig) -> None:
        """Refuse a layout that leaves ranks matrices of sizes which FP8 does not take; without FP8 there is no such rule.

        Raises:
            ConfigError: naming the size.
        """
        if not precision.fp8:
            return
        p = self.parallel
        multiple = _FP8_MULTIPLES.get(precision.fp8, _FP8_MULTIPLE)
        tokens = p.context * (p.tensor if p.sequence_parallel else 1)
        for name, size, cut in (
            ("model.hidden_size", model.hidden_size, p.tensor),
            ("model.ffn_hidden_size", model.ffn_hidden_size, p.tensor),
            ("model.sequence_length", model.sequence_length, tokens),
        ):
            if size % cut or size // cut % multiple:
                raise ConfigError(
                    f"{name} {size} over {cut} ranks is not a multiple of {multiple}.",
                    f"The matrix products of precision.fp8 {precision.fp8!r} need it.",
                    f"Set {name} to a multiple of {multiple * cut}, or change the layout.",
                )

    def num_micro_batches(self, global_batch_size: int, micro_batch_size: int | None = None) -> int:
        """Micro-batches of a step on every data-parallel rank.

        Args:
            global_batch_size: windows of a step, all ranks together.
            micro_batch_size: windows that a rank computes at once; None: all it has.

        Raises:
            ConfigError: the batch does not divide.
        """
        replicas = self.parallel.data
        multiple = f"train.micro_batch_size {micro_batch_size} x parallel.data" if micro_batch_size else "parallel.data"
        if global_batch_size % ((micro_batch_size or 1) * replicas):
            raise ConfigError(
                f"global_batch_size {global_batch_size} is not a multiple of {multiple} {replicas}.",
                "Every rank must compute as many windows.",
            )
        return global_batch_size // (micro_batch_size * replicas) if micro_batch_size else 1

    def check_micro_batches(self, num_micro_batches: int) -> None:
        """Refuse a number of micro-batches a step and rank that interleaving does not divide.

        Raises:
            ConfigError: it does not.
        """
        stages = self.parallel.pipeline
        if self.parallel.virtual_pipeline and num_micro_batches % stages:
            raise ConfigError(
                f"A step has {num_micro_batches} micro-batches a rank, which is not a multiple of parallel.pipeline {stages}.",
                "Interleaved stages pass micro-batches in groups of that size.",
                "Change the batch sizes (injection: lm_batch_size plus one batch of words), or unset "
                "parallel.virtual_pipeline.",
            )

    def check_world_size(self, world_size: int) -> None:
        """Refuse a number of processes that is not the layout's.

        Raises:
            ConfigError: the numbers differ.
        """
        if world_size != self.world_size:
            p = self.parallel
            raise ConfigError(
                f"{world_size} processes were started for a layout of {self.world_size} (tensor {p.tensor} x context "
                f"{p.context} x data {p.data} x pipeline {p.pipeline}).",
                fix=f"Start {self.world_size} processes, or change parallel.data.",
            )


def _divides(name: str, degree: int, of: str, value: int, more: str = "") -> None:
    if value % degree:
        near = [d for d in range(1, value + 1) if value % d == 0]
        below = max((d for d in near if d < degree), default=1)
        above = min((d for d in near if d > degree), default=value)
        raise ConfigError(
            f"{name} is {degree}, which does not divide {of} {value}.",
            "Every rank must hold an equal part.",
            f"Set {name} to {' or '.join(map(str, sorted({below, above})))}, or change {of}.{more}",
        )
