"""Scripts mixed in what a model writes: text in one language continued, and looked through for tokens or letters of others.

PreAlign (section 5.3, Table 4) counts the generations in English that contain tokens of En-Clone: 4.17 % after vanilla
codeswitching, 0.02 % after input-only codeswitching.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from megalign.corpus.keyed_random import generator
from megalign.corpus.store import TokenStore
from megalign.corpus.vocabulary import Vocabulary
from megalign.engine import groups
from megalign.engine.device import DEVICE
from megalign.engine.engine import Engine, LanguageBatch
from megalign.evaluation.perplexity import validation_windows
from megalign.evaluation.scores import Score
from megalign.intervals import bootstrap_ratio, wilson_interval
from megalign.translation.languages import known_language, script_of

_SEED = 20240722


def generate(
    engine: Engine,
    prompts: np.ndarray,
    num_new: int,
    *,
    num_ids: int,
    seed: int,
    batch_size: int,
    temperature: float = 1.0,
) -> np.ndarray:
    """Tokens drawn after each prompt, the same ones in every layout up to rounding.

    The draw is the argmax of logits / temperature plus Gumbel noise (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030),
    the noise a function of (seed, prompt, position). Calls `engine.interrupt` before every token, on all ranks equally often.

    Args:
        engine: the model.
        prompts: int64 [prompts, length], of one length.
        num_new: tokens drawn for each.
        num_ids: only ids below it, those that are no padding of the vocabulary.
        seed: of the noise.
        batch_size: prompts computed at once.
        temperature: 0 takes the most likely token.

    Returns:
        int64 [prompts, num_new], on every rank.
    """
    world, rank = engine.layout.parallel.data, engine.layout.coordinates(groups.rank()).data
    shares = [len(prompts) * number // world for number in range(world + 1)]
    counts = [shares[number + 1] - shares[number] for number in range(world)]
    own = np.zeros((counts[rank], num_new), dtype=np.int64)
    for start in range(0, max(counts), batch_size):
        # A rank that has no prompt left repeats one, as all must call the engine equally often.
        places = np.minimum(np.arange(start, start + batch_size), max(counts[rank], 1) - 1) + shares[rank]
        drawn = _draw(engine, prompts, places % len(prompts), num_new, num_ids, seed, temperature)
        size = max(min(batch_size, counts[rank] - start), 0)
        own[start : start + size] = drawn[:size]
    gathered: np.ndarray = groups.gather_rows(torch.from_numpy(own).to(DEVICE), counts).cpu().numpy()
    return gathered


def _draw(
    engine: Engine, prompts: np.ndarray, places: np.ndarray, num_new: int, num_ids: int, seed: int, temperature: float
) -> np.ndarray:
    parallel = engine.layout.parallel
    parts = 2 * parallel.tensor * parallel.context
    length = prompts.shape[1]
    width = -(-(length + num_new) // parts) * parts
    # What is not drawn yet stands to the right, where causal attention hides it.
    rows = np.zeros((len(places), width), dtype=np.int64)
    rows[:, :length] = prompts[places]
    for step in range(num_new):
        engine.interrupt()
        ends = np.full(len(rows), length + step - 1, dtype=np.int64)
        batch = LanguageBatch(rows, rows, np.ones(rows.shape, dtype=np.float32))
        noise = np.stack([_gumbel(seed, int(place), step, num_ids) for place in places]) * np.float32(temperature)
        rows[:, length + step] = engine.most_likely(batch, ends, num_ids, noise)
    return rows[:, length : length + num_new]


def _gumbel(seed: int, prompt: int, step: int, num_ids: int) -> np.ndarray:
    """Standard Gumbel noise, float32 [num_ids]."""
    return generator(seed, "generate", prompt, step).gumbel(size=num_ids).astype(np.float32)


def foreign_counts(ids: np.ndarray, vocabulary: Vocabulary, source: str, target: str) -> np.ndarray | None:
    """How much of each generation is in another language than it should be.

    A clone has ids of its own: its tokens are counted. Otherwise letters are, those in a script of the target that the
    source is not written in.

    Args:
        ids: int64 [generations, tokens]; what follows an end of text does not count.
        vocabulary: of the ids.
        source: language of the text that was continued.
        target: the other language.

    Returns:
        int64 [generations, 2]: tokens (or letters) in the target language, and all; None where the two languages share ids
        and scripts, or a script is not known.
    """
    low, high = vocabulary.language_range(target)
    before_end = np.cumsum(ids == vocabulary.eos_id, axis=1) == 0
    if low < high:
        foreign = (ids >= low) & (ids < high) & before_end
        return np.stack([foreign.sum(axis=1), before_end.sum(axis=1)], axis=1)
    own, other = known_language(vocabulary.clone_of.get(source, source)), known_language(target)
    if own is None or other is None or not (scripts := set(other.scripts) - set(own.scripts)):
        return None
    counts = np.zeros((len(ids), 2), dtype=np.int64)
    for number, (row, inside) in enumerate(zip(ids, before_end, strict=True)):
        letters = [character for character in vocabulary.decode(row[inside]) if character.isalpha()]
        counts[number] = sum(script_of(character) in scripts for character in letters), len(letters)
    return counts


def mixed_script_scores(
    engine: Engine,
    store: TokenStore,
    source: str,
    *,
    num_generations: int,
    num_tokens: int,
    prompt_tokens: int,
    batch_size: int,
    step: int,
) -> Iterator[Score]:
    """For every other language: the share of generations with anything of it, and its share of all tokens or letters.

    Held-out text of the source is continued at temperature 1. Languages that cannot be told from the source by ids or
    scripts (German from English) are left out.

    Args:
        engine, store: the model and its text.
        source: language of the prompts.
        num_generations: how many; fewer where there is less held-out text.
        num_tokens: tokens drawn for each.
        prompt_tokens: tokens of held-out text before them.
        batch_size: how many are computed at once.
        step: training step the scores belong to.
    """
    vocabulary = store.vocabulary
    prompts = validation_windows(store, source, prompt_tokens, num_generations)[:, :prompt_tokens]
    ids = generate(engine, prompts, num_tokens, num_ids=vocabulary.size, seed=_SEED, batch_size=batch_size)
    for target in vocabulary.languages:
        counts = foreign_counts(ids, vocabulary, source, target) if target != source else None
        if counts is None:
            continue
        hits = int((counts[:, 0] > 0).sum())
        low, high = wilson_interval(hits, len(counts))
        yield Score("mixed_script_generations", target, None, step, hits / len(counts), low, high, len(counts), "share")
        # A generation that ends at once has nothing to share out.
        foreign, everything = counts[counts[:, 1] > 0].astype(np.float64).T
        if len(everything):
            total = int(everything.sum())
            start, end = bootstrap_ratio(foreign, everything, seed=_SEED) if len(everything) > 1 else (None, None)
            unit = "share of tokens" if vocabulary.language_range(target)[1] else "share of letters"
            yield Score("mixed_script_share", target, None, step, float(foreign.sum() / total), start, end, total, unit)
