"""What each step takes: how many samples, and whether a batch of words."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from megalign.config.sections import TrainConfig
from megalign.errors import ConfigError


@dataclass(frozen=True)
class BatchSchedule:
    """Global batch sizes by step, a pure function.

    Attributes:
        sizes: samples of a step, by phase.
        first_steps: the first step of each phase, from 1.
        first_positions: the position of that step's first sample.
    """

    sizes: tuple[int, ...]
    first_steps: tuple[int, ...] = (1,)
    first_positions: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, train: TrainConfig, sequence_length: int) -> BatchSchedule:
        """The schedule of train.batch_size_ramp and train.global_batch_size; phases end with whole steps."""
        sizes, steps, positions = [], [1], [0]
        for phase in train.batch_size_ramp:
            wanted = -(-phase.until_tokens // sequence_length) - positions[-1]
            num_steps = max(0, -(-wanted // phase.global_batch_size))
            sizes.append(phase.global_batch_size)
            steps.append(steps[-1] + num_steps)
            positions.append(positions[-1] + num_steps * phase.global_batch_size)
        return cls((*sizes, train.global_batch_size), tuple(steps), tuple(positions))

    def _phase(self, step: int) -> int:
        return bisect_right(self.first_steps, step) - 1

    def size(self, step: int) -> int:
        """Samples of step `step`, from 1."""
        return self.sizes[self._phase(step)]

    def first(self, step: int) -> int:
        """Position of the first sample of step `step`: the samples that the steps before it took."""
        phase = self._phase(step)
        return self.first_positions[phase] + (step - self.first_steps[phase]) * self.sizes[phase]

    def taken(self, num_steps: int) -> int:
        """Samples that the first `num_steps` steps take."""
        return self.first(num_steps + 1)

    def steps_within(self, num_samples: int) -> int:
        """The most steps that take no more than `num_samples` samples."""
        phase = max(0, bisect_left(self.first_positions, num_samples + 1) - 1)
        return self.first_steps[phase] - 1 + (num_samples - self.first_positions[phase]) // self.sizes[phase]


class WordSchedule:
    """Batches of words in steps of another kind, evenly spread, the last of them in the last step.

    Args:
        num_steps: steps there are.
        num_batches: steps that have a batch of words.

    Raises:
        ConfigError: there are more batches than steps.
    """

    def __init__(self, num_steps: int, num_batches: int) -> None:
        if num_batches > num_steps:
            raise ConfigError(
                f"The {num_steps} steps of pretraining have no room for {num_batches} batches of words (inject.steps).",
                "A step has at most one.",
                "Lower inject.steps, or raise train.steps or train.max_epochs.",
            )
        self.num_steps, self.num_batches = num_steps, num_batches

    def taken(self, num_steps: int) -> int:
        """Batches of words in the first `num_steps` steps."""
        return num_steps * self.num_batches // self.num_steps

    def batch_of(self, step: int) -> int | None:
        """Number, from 0, of the batch of words in step `step`, from 1; None where it has none."""
        before = self.taken(step - 1)
        return before if self.taken(step) > before else None
