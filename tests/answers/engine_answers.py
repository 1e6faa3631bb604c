"""What the tests of answers compute on the ranks of a layout."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch

from megalign.answers.trained_run import RunModel, load_run_model, reading_config
from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, PrecisionConfig
from megalign.corpus.tokenizer import Tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.engine.engine import Engine, LanguageBatch
from megalign.engine.model import unwrapped

MODEL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    ffn_hidden_size=64,
    sequence_length=96,
    init_std=0.4,
)
OPTIONS = ["A", "B", " the house", " a", " of the of"]


def random_model(layout: Layout, tokenizer: Path, batch_size: int) -> RunModel:
    """A model with large random weights, equal under every layout, that answers differently to different prompts."""
    vocabulary = Vocabulary(Tokenizer.load(tokenizer), ("en", "en-clone"), {"en-clone": "en"})
    engine = Engine(MODEL, layout, PrecisionConfig(), vocab_size=vocabulary.size, seed=1)
    return RunModel(
        engine,
        vocabulary,
        name="random",
        fingerprint="0",
        batch_size=batch_size,
        max_length_tokens=MODEL.sequence_length,
        dtype="float32",
    )


def answers(
    layout: Layout, tokenizer: Path, prompts: list[str], batch_size: int, stop: list[str]
) -> tuple[list[str], list[list[float]]]:
    """Greedy texts and likelihoods of options."""
    model = random_model(layout, tokenizer, batch_size)
    texts = model.generate(prompts, max_new_tokens=7, stop=stop)
    return texts, model.option_log_likelihoods(prompts, [OPTIONS] * len(prompts))


def brute_force(layout: Layout, tokenizer: Path, prompts: list[str]) -> tuple[list[str], list[list[float]]]:
    """The same from the logits of the Megatron model, one sequence at a time and without padding."""
    model = random_model(layout, tokenizer, 1)
    vocabulary, chunk = model.vocabulary, unwrapped(model.engine.chunks[0]).eval()

    def logits(ids: list[int]) -> torch.Tensor:
        tokens = torch.tensor([ids])
        with torch.no_grad():
            return chunk(tokens, torch.arange(len(ids))[None], None)[0, :, : vocabulary.size].double()

    texts, totals = [], []
    for prompt in prompts:
        context = [vocabulary.eos_id, *vocabulary.encode(prompt, "en").tolist()]
        new: list[int] = []
        while len(new) < 7:
            best = int(logits(context + new)[-1, : vocabulary.size].argmax())
            if best == vocabulary.eos_id:
                break
            new.append(best)
        texts.append(vocabulary.decode(new))
        stripped = [vocabulary.eos_id, *vocabulary.encode(prompt.rstrip(), "en").tolist()]
        row = []
        for option in OPTIONS:
            whole = [vocabulary.eos_id, *vocabulary.encode(prompt + option, "en").tolist()]
            target = whole[len(stripped) :]
            logp = logits(stripped + target).log_softmax(-1)
            row.append(sum(float(logp[len(stripped) - 1 + n, token]) for n, token in enumerate(target)))
        totals.append(row)
    return texts, totals


def scored_by_engine(layout: Layout, run: Path, pairs: list[tuple[str, str]]) -> list[float]:
    """The sum over an option's tokens of what Engine.score says, each pair alone in its batch."""
    model = load_run_model(reading_config(run), batch_size=1)
    vocabulary = model.vocabulary
    totals = []
    for prompt, option in pairs:
        context = vocabulary.encode(prompt, model.language)
        target = vocabulary.encode(prompt + option, model.language)[len(context) :]
        whole, count = np.concatenate([[vocabulary.eos_id], context, target]).astype(np.int64), len(target)
        tokens, labels = whole[None, :-1], whole[None, 1:]
        batch = LanguageBatch(tokens, labels, np.ones(labels.shape, dtype=np.float32))
        known = (0, vocabulary.size)
        (scores,) = model.engine.score([batch], {"known": known})
        # Over the ids of the vocabulary alone, from probabilities over the padding too.
        totals.append(-float((scores.nll + np.log(scores.mass["known"]))[0, -count:].sum(dtype=np.float64)))
    return totals


def prefixes(texts: list[str]) -> list[str]:
    """Prompts of different lengths."""
    return [text[: 5 + 7 * number] for number, text in enumerate(itertools.islice(texts, 7))]


def in_a_language(layout: Layout, tokenizer: Path, prompts: list[str], language: str) -> list[list[float]]:
    """Likelihoods of options with prompts in a language of the vocabulary."""
    model = random_model(layout, tokenizer, 4)
    model.language = language
    return model.option_log_likelihoods(prompts, [OPTIONS] * len(prompts))
