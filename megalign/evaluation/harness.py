"""lm-evaluation-harness (Gao et al., EleutherAI) over a run's checkpoint, without an export.

    lm = MegalignLM("runs/demo/runs/prealign/seed0", batch_size=16)
    simple_evaluate(lm, tasks=["xnli_en"])

`megalign lm-eval` does this in the processes of the run's tensor and pipeline layout: all of them read the same tasks and
make the same calls, the first writes. `python -m megalign.evaluation.harness run --model megalign --model_args run=FOLDER`
is the harness's own command line with this model.

Tokens, windows and cuts are those of the harness's `hf` model on an export of the run: a text starts with the end-of-text
token, once, and the vocabulary's padding has no probability. One difference is wanted: `hf` puts the start token of such a
tokenizer twice before the texts of `loglikelihood_rolling`, unless it is told `add_bos_token=False`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from megalign.answers.trained_run import RunModel, open_run
from megalign.errors import ConfigError, DataError, MegalignError, report_error
from megalign.files import write_text

# lm_eval's own default.
MAX_NEW_TOKENS = 256
_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_LINE_SECONDS = 30.0


@register_model("megalign")
class MegalignLM(TemplateLM):
    """A run's newest checkpoint for the harness.

    Args:
        run: the folder of a run, opened in this process; or a model that is open, with all ranks making the same calls.
        batch_size: rows computed at once.
        language: language of the tasks; only a clone's ids differ from the others'.
        dtype: float32 or bfloat16; None: as trained.
        device, max_batch_size: the harness gives them to every model; the engine takes the machine's device.
        progress_file: keeps what is computed, so that a stopped evaluation continues; None: nothing is kept.
    """

    def __init__(
        self,
        run: str | RunModel,
        batch_size: int | str = 16,
        language: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
        progress_file: Path | None = None,
    ) -> None:
        super().__init__()
        if isinstance(run, RunModel):
            self.model = run
        else:
            if not str(batch_size).isdigit():
                raise ConfigError(f"batch_size is {batch_size}.", fix="Give a number.")
            self.model = open_run(Path(run), batch_size=int(batch_size), dtype=dtype, language=language)
        self.model.truncate = True
        self.num_cut = 0
        self._writes = not dist.is_initialized() or dist.get_rank() == 0
        self._kept = _Kept(progress_file, self.model) if progress_file else None

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return self.model.end_id

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens."""
        length = self.model.max_length_tokens
        assert length is not None
        return length

    @property
    def max_gen_toks(self) -> int:
        """New tokens where a task says nothing."""
        return MAX_NEW_TOKENS

    def get_model_info(self) -> dict[str, Any]:
        """What the results say of the model."""
        return {
            "model_name": self.model.name,
            "model_fingerprint": self.model.fingerprint,
            "model_dtype": self.model.dtype,
            "model_language": self.model.language,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text, the start token before them unless `add_special_tokens` is False."""
        ids = self.model.encode(string)
        return ids[1:] if add_special_tokens is False else ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding would say it) of each (texts, context ids, continuation ids)."""
        pairs = [self._fitted(context, continuation) for _, context, continuation in requests]

        def compute(some: Sequence[tuple[list[int], list[int]]]) -> list[Any]:
            return [list(one) for one in self.model.score_ids(some)]

        lengths = [len(ids) for ids, _ in pairs]
        found = self._batched("loglikelihood", pairs, lengths, compute, disable_tqdm)
        return [(float(total), bool(greedy)) for total, greedy in found]

    def _fitted(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """What is fed, its left end cut where it is too long, and what is read."""
        if not context or not continuation:
            raise DataError(
                f"A task asks for the likelihood of {len(continuation)} tokens after {len(context)}.",
                "There is nothing to score, or nothing before it.",
                "Correct the task.",
            )
        if len(continuation) > self.max_length:
            raise DataError(
                f"A task's continuation has {len(continuation)} tokens; the model takes {self.max_length}.",
                "A part of it would not be scored.",
                "Leave the task out, or use loglikelihood_rolling.",
            )
        whole = context + continuation
        self.num_cut += len(whole) > self.max_length + 1
        return whole[-(self.max_length + 1) :][:-1], continuation

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of each whole text, in windows, every token read once."""
        windows, counts = [], []
        for (text,) in (request.args for request in requests):
            rolled = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *make_disjoint_window(one)) for one in rolled]
            windows += own
            counts.append(len(own))
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, cut before the first of a task's stop texts."""
        asked = [(request.args[0], *self._generation(dict(request.args[1]))) for request in requests]
        answers = [""] * len(asked)
        for number, stop in sorted({(count, stop) for _, count, stop in asked}):
            places = [at for at, one in enumerate(asked) if one[1:] == (number, stop)]
            prompts = [asked[at][0] for at in places]

            def compute(some: Sequence[str], number: int = number, stop: tuple[str, ...] = stop) -> list[Any]:
                return self.model.generate(list(some), max_new_tokens=number, stop=stop)

            kind = f"generate {number} {json.dumps(stop)}"
            lengths = [len(prompt) for prompt in prompts]
            for at, text in zip(places, self._batched(kind, prompts, lengths, compute, disable_tqdm), strict=True):
                answers[at] = text
        return answers

    def _generation(self, settings: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
        """New tokens and stop texts of a task's generation_kwargs."""
        if settings.get("do_sample") or settings.get("temperature") not in (None, 0, "0"):
            raise ConfigError(
                f"A task samples: {settings}.",
                "Answers here are greedy.",
                "Set gen_kwargs do_sample=False,temperature=0, or export the model and use --model hf.",
            )
        asked = next((settings[name] for name in _NEW_TOKENS if settings.get(name) is not None), self.max_gen_toks)
        try:
            number = int(asked)
        except (TypeError, ValueError):
            number = 0
        if number < 1:
            raise ConfigError(f"A task generates {asked!r} tokens.", fix="Set gen_kwargs max_gen_toks to 1 or more.")
        if number >= self.max_length:
            raise ConfigError(
                f"A task generates up to {number} tokens; the model takes {self.max_length} with the prompt.",
                "There would be no room for the prompt.",
                f"Set gen_kwargs max_gen_toks to less than {self.max_length}.",
            )
        until = settings.get("until") or []
        return number, tuple(map(str, until if isinstance(until, list | tuple) else [until]))

    def _batched(
        self,
        kind: str,
        asked: Sequence[Any],
        lengths: Sequence[int],
        compute: Callable[[Sequence[Any]], list[Any]],
        disable_tqdm: bool,
    ) -> list[Any]:
        """Results of all that is asked, longest first in batches; what was kept is not computed again."""
        keys = [_key(kind, one) for one in asked]
        known = self._kept.results if self._kept else {}
        left = sorted((at for at in range(len(asked)) if keys[at] not in known), key=lambda at: (-lengths[at], at))
        found = dict(known)
        size = self.model.batch_size
        # Lines now and then where the output is no terminal.
        interval = 0.5 if sys.stderr.isatty() else _LINE_SECONDS
        with tqdm(
            total=len(asked),
            initial=len(asked) - len(left),
            desc=kind.split()[0],
            mininterval=interval,
            disable=disable_tqdm or not self._writes,
        ) as bar:
            for start in range(0, len(left), size):
                places = left[start : start + size]
                results = compute([asked[at] for at in places])
                fresh = {keys[at]: result for at, result in zip(places, results, strict=True)}
                found |= fresh
                if self._kept:
                    self._kept.add(fresh, self._writes)
                bar.update(len(places))
        return [found[key] for key in keys]


def _key(kind: str, asked: Any) -> str:
    return hashlib.sha256(json.dumps([kind, asked]).encode()).hexdigest()[:32]


class _Kept:
    """Results of a stopped evaluation, a line for each; every rank knows the same ones, or they would part ways."""

    def __init__(self, path: Path, model: RunModel) -> None:
        self.path = path
        self.results: dict[str, Any] = {}
        head = {"model": model.fingerprint, "language": model.language, "dtype": model.dtype}
        content: list[Any] = [self._read(head)] if not dist.is_initialized() or dist.get_rank() == 0 else [None]
        if dist.is_initialized():
            dist.broadcast_object_list(content)
        if isinstance(content[0], tuple):
            what, why = content[0]
            raise DataError(what, why, "Choose another folder.")
        self.results = content[0]

    def _read(self, head: dict[str, Any]) -> dict[str, Any] | tuple[str, str]:
        """What was kept, or what is wrong and why it matters; a last line that a kill cut is dropped."""
        kept = self.path.read_bytes() if self.path.exists() else b""
        kept = kept[: kept.rfind(b"\n") + 1]
        if not kept:
            write_text(self.path, json.dumps(head) + "\n")
            return {}
        try:
            first, *others = [json.loads(line) for line in kept.splitlines()]
            results = {key: result for one in others for key, result in one.items()}
        except (ValueError, AttributeError) as error:
            return f"{self.path} is damaged: {error}.", "What was computed cannot be told."
        if first != head:
            return f"{self.path} was begun with {first}, this is {head}.", "The results would be of two models."
        os.truncate(self.path, len(kept))
        return results

    def add(self, fresh: dict[str, Any], writes: bool) -> None:
        """Remember results, and append them to the file on the rank that writes."""
        self.results |= fresh
        if writes:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(fresh, ensure_ascii=False) + "\n")
                stream.flush()
                os.fsync(stream.fileno())


def main() -> None:
    """The harness's command line, with this model in its registry."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except MegalignError as error:
        sys.exit(report_error(error))


if __name__ == "__main__":
    main()
