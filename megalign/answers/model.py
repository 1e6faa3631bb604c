"""What every model that answers can do: greedy generation and likelihoods of options, in batches sorted by length."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from megalign.errors import ConfigError, DataError

T = TypeVar("T")


@dataclass(frozen=True)
class OptionScores:
    """The options of one prompt.

    Attributes:
        log_likelihoods: of each option's text after the prompt, in nats, summed over its tokens.
        num_tokens: tokens each option's text takes; divide by them for the likelihood of a token.
    """

    log_likelihoods: list[float]
    num_tokens: list[int]


@dataclass(frozen=True)
class ScoredInput:
    """Ids fed to the model, and the continuations whose ids its outputs are read for.

    Attributes:
        ids: the input; a continuation's last token is read and not fed.
        continuations: ids of each, all of one length n; they are read from the outputs at the last n positions of `ids`.
    """

    ids: tuple[int, ...]
    continuations: list[tuple[int, ...]]


class PromptProblem(DataError):
    """A prompt that cannot be asked.

    Args:
        number: its place among those given.
        said: what is wrong, to be read after its name.
        why, fix: see MegalignError.
    """

    def __init__(self, number: int, said: str, why: str = "", fix: str = "") -> None:
        super().__init__(f"Prompt {number} {said}", why, fix)
        self.number, self.said = number, said


class AnswerModel(ABC):
    """A causal language model that is only read.

    Attributes:
        name: for file names and reports.
        fingerprint: hex digits that change with the weights.
        dtype: numbers it computes with.
        batch_size: rows computed at once.
        max_length_tokens: longest sequence; None where the model states none.
        truncate: cut what is too long at its left end; otherwise that is an error.
    """

    name: str
    fingerprint: str
    dtype: str
    batch_size: int
    max_length_tokens: int | None
    truncate: bool = False

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """The most likely next tokens of each prompt, one after the other, as text without the prompt.

        A text ends at the model's end-of-text token, before the first of the `stop` texts, or after `max_new_tokens`.
        Sampling settings and penalties that a model's files name are not used.

        Raises:
            ConfigError: no new tokens are asked for, or a stop text is empty.
            DataError: a prompt leaves no room for the new tokens, or is empty where the model has no start token; the
                model computes what is no number.
        """
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}.", fix="Set 1 or more.")
        if "" in stop:
            raise ConfigError("A stop text is empty.", "It would end every answer at once.", "Leave it out.")
        rows = [self._fitted(self._context(prompt), max_new_tokens, number) for number, prompt in enumerate(prompts)]
        answers = [""] * len(rows)
        for batch in self._batches([len(row) for row in rows]):
            generated = self._continue([rows[at] for at in batch], max_new_tokens, stop)
            for at, ids in zip(batch, generated, strict=True):
                answers[at] = cut_at_stop(self._decode(ids), stop)
        return answers

    def option_log_likelihoods(self, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """`score_options` without the numbers of tokens."""
        return [scores.log_likelihoods for scores in self.score_options(prompts, options)]

    def score_options(self, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        """How likely each option's text is as a continuation of its prompt.

        Prompt and option are encoded together, and the tokens beyond those of the prompt alone are the option's; white space
        at the prompt's end counts with the option (Gao et al., lm-evaluation-harness, `TemplateLM._encode_pair`). Options that
        differ in their last token alone cost one row, except in runs of ours.

        Args:
            prompts: what stands before.
            options: the options of each prompt; the texts start with a space where one belongs.

        Raises:
            DataError: an option is empty or adds no token, a prompt with its option is too long, or a likelihood is no
                number.
        """
        groups: dict[tuple[tuple[int, ...], int], ScoredInput] = {}
        places: list[list[tuple[ScoredInput, int]]] = []
        for number, (prompt, texts) in enumerate(zip(prompts, options, strict=True)):
            places.append([])
            for text in texts:
                context, continuation = self.encode_pair(prompt, text, number)
                whole = self._fitted(context + continuation, 0, number, kept=len(continuation))
                ids = tuple(whole[:-1])
                group = groups.setdefault((ids, len(continuation)), ScoredInput(ids, []))
                places[-1].append((group, len(group.continuations)))
                group.continuations.append(tuple(continuation))
        inputs = list(groups.values())
        totals: dict[int, list[float]] = {}
        for batch in self._batches([len(one.ids) for one in inputs]):
            chosen = [inputs[at] for at in batch]
            for one, scores in zip(chosen, self._score(chosen), strict=True):
                if not all(map(math.isfinite, scores)):
                    raise self.no_number()
                totals[id(one)] = scores
        return [
            OptionScores(
                [totals[id(group)][place] for group, place in row],
                [len(group.continuations[place]) for group, place in row],
            )
            for row in places
        ]

    def chat_prompt(self, prompt: str, system: str | None = None) -> str:
        """The prompt as a user's turn in the model's chat template, up to where the answer starts.

        Raises:
            ConfigError: the model has no chat template.
        """
        raise ConfigError(f"{self.name} has no chat template.", fix="Ask it without one.")

    def no_number(self) -> DataError:
        """The error of a model whose outputs are not finite."""
        return DataError(
            f"{self.name} computes what is no number (in {self.dtype}).",
            "Its weights are damaged, or too large for these numbers; any answer would mean nothing.",
            "Look at the weights, or choose float32 or bfloat16.",
        )

    def close(self) -> None:  # noqa: B027 - most models hold nothing to give back
        """Give back what the model holds."""

    def __enter__(self) -> AnswerModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    @abstractmethod
    def end_id(self) -> int | None:
        """The end-of-text token, if there is one."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of a text that starts a sequence, with the start token where the model is used to one."""

    @abstractmethod
    def _decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids; special tokens stand for none."""

    @abstractmethod
    def _start_ids(self) -> list[int]:
        """What stands before an empty prompt: one id, or none where the model has no such token."""

    @abstractmethod
    def _continue(self, rows: list[list[int]], max_new_tokens: int, stop: Sequence[str]) -> list[list[int]]:
        """New ids of each row of one batch, up to and without the end-of-text token; a stop text may be contained."""

    @abstractmethod
    def _score(self, inputs: list[ScoredInput]) -> list[list[float]]:
        """Total log-likelihood in nats of each continuation of each input of one batch."""

    def ends_with_stop(self, ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the last of the generated ids completes one of the stop texts."""
        if not stop or not ids:
            return False
        # A token has a byte at least, so that a text reaches no further back than it has bytes.
        tail = self._decode(ids[-max(len(text.encode()) for text in stop) - 1 :])
        return any(text in tail for text in stop)

    def _context(self, prompt: str) -> list[int]:
        return self._encode(prompt) or self._start_ids()

    def encode_pair(self, prompt: str, option: str, number: int = 0) -> tuple[list[int], list[int]]:
        """Ids of a prompt and of what follows it, as `score_options` reads them.

        Raises:
            DataError: nothing follows, or nothing stands before; `number` is the prompt's in the message.
        """
        text = prompt.rstrip()
        continuation = prompt[len(text) :] + option
        if text:
            context = self._encode(text)
            whole = self._encode(text + continuation)[len(context) :]
        else:
            context = self._start_ids()
            whole = self._encode(continuation)
            whole = whole[1:] if context and whole[:1] == context else whole
        if not option or not whole or not context:
            reason = "the option adds no token" if context else "the prompt is empty and the model has no start token"
            raise PromptProblem(number, f"has the option {option!r}, which has no likelihood: {reason}.")
        return context, whole

    def _fitted(self, ids: list[int], num_new: int, number: int, kept: int = 1) -> list[int]:
        """`ids` if they fit, or their right end; of a scored row the last id is read and not fed."""
        limit = self.max_length_tokens
        if not ids:
            raise PromptProblem(number, f"is empty, and {self.name} has no start token.", fix="Leave it out.")
        room = None if limit is None else (limit - num_new if num_new else limit + 1)
        if room is None or len(ids) <= room:
            return ids
        if not self.truncate or room < kept + (not num_new):
            new = f" and {num_new} new ones" if num_new else ""
            raise PromptProblem(
                number,
                f"has {len(ids)} tokens{new}; {self.name} takes {limit}.",
                "What does not fit would be cut off at its start.",
                "Shorten the prompts, ask for fewer new tokens, or allow the cut where that is offered (truncate).",
            )
        return ids[-room:]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Places of rows, longest first: rows of a batch are of like lengths, and too large a batch fails at once."""
        order = sorted(range(len(lengths)), key=lambda at: (-lengths[at], at))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first occurrence of any of the stop texts."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return text[: min(found)] if found else text
