"""Whether two implementations of a model give the same logits.

Both compute in float32, in other orders, so they differ by rounding. A sum of n products in float32 is off by about
sqrt(n) x 2^-24 of the size of its terms (Higham and Mary 2019, SIAM J. Sci. Comput. 41(5): rounding errors behave as
independent draws), and each of the 2 x layers + 1 additions to the residual stream adds such an error of its own. A logit is
therefore taken as equal within

    4 x 2^-24 x sqrt(feed-forward size) x sqrt(2 x layers + 1) x the largest absolute logit.

Measured on random GPT-2 and Llama models of 2 to 24 layers against float64, float32 is off by 1/60 to 1/3 of that; the
smallest mistake an export could make, GELU's other form, is twice to thirty times that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megalign.config.sections import ModelConfig
from megalign.corpus.keyed_random import generator
from megalign.engine.device import DEVICE
from megalign.engine.engine import Engine, LanguageBatch
from megalign.errors import DataError

_UNIT = 2.0**-24
_ROOM = 4.0
# Attention's scores grow with the square of a window, and both models hold all of them.
LONGEST = 2048
# So many logits at once, in float32, in each of the two models.
_LOGITS = 1 << 26


@dataclass(frozen=True)
class Parity:
    """What was compared.

    Attributes:
        max_difference: largest absolute difference of two logits.
        max_logit: largest absolute logit.
        tolerance: what max_difference must not exceed.
        num_windows, num_tokens: windows and tokens that were fed.
    """

    max_difference: float
    max_logit: float
    tolerance: float
    num_windows: int
    num_tokens: int

    def __str__(self) -> str:
        return (
            f"largest difference of logits {self.max_difference:.2e} (tolerance {self.tolerance:.2e}, largest logit "
            f"{self.max_logit:.3g}) on {self.num_windows} windows, {self.num_tokens} tokens"
        )


def tolerance(model: ModelConfig, max_logit: float) -> float:
    """The largest difference that rounding explains (see above)."""
    return _ROOM * _UNIT * (model.ffn_hidden_size * (2 * model.num_layers + 1)) ** 0.5 * max_logit


def random_windows(num_ids: int, length: int, count: int = 4) -> np.ndarray:
    """Windows of ids drawn alike, as long as the model's: int64 [count, LONGEST at most]."""
    shape = (count, min(length, LONGEST))
    return generator(0, "huggingface", "windows").integers(0, num_ids, shape, dtype=np.int64)


def compare(
    engine: Engine,
    theirs: Any,
    model: ModelConfig,
    windows: np.ndarray,
    num_ids: int,
    each: Callable[[np.ndarray, torch.Tensor], None] = lambda tokens, logits: None,
) -> Parity:
    """Feed the same windows to both models and compare every logit.

    Args:
        engine: ours, in float32, in one process.
        theirs: a Hugging Face causal model in float32.
        model: of ours.
        windows: int64 [windows, length], ids of the vocabulary.
        num_ids: ids of the vocabulary, without padding.
        each: called with the tokens and the Hugging Face logits [windows, length, num_ids] of every batch.

    Raises:
        DataError: they differ by more than rounding, or logits are not finite.
    """
    theirs = theirs.to(DEVICE).eval()
    largest = difference = 0.0
    for tokens in _batches(windows, num_ids):
        ours = engine.logits(LanguageBatch(tokens, tokens, np.ones(tokens.shape, dtype=np.float32)), num_ids)
        with torch.inference_mode():
            other = theirs(input_ids=torch.from_numpy(tokens).to(DEVICE), use_cache=False).logits
        other = other[..., :num_ids].float().cpu()
        largest = max(largest, float(other.abs().max()))
        difference = max(difference, float((ours - other).abs().max()))
        if not np.isfinite([largest, difference]).all() or not bool(torch.isfinite(ours).all()):
            raise DataError(
                "The logits are not finite.", "Nothing can be said about such a model.", "Use another checkpoint."
            )
        each(tokens, other)
    allowed = tolerance(model, largest)
    found = Parity(difference, largest, allowed, len(windows), int(windows.size))
    if difference > allowed:
        raise DataError(
            f"The two models do not compute the same: {found}.",
            "Rounding in float32 does not explain so much; scores of one would not be those of the other.",
            "Nothing was written. Please report the model's settings.",
        )
    return found


def _batches(windows: np.ndarray, num_ids: int) -> Iterator[np.ndarray]:
    size = max(1, _LOGITS // (num_ids * windows.shape[1]))
    for start in range(0, len(windows), size):
        yield np.ascontiguousarray(windows[start : start + size])
