"""Token scores, words' vectors and pooling against torch's own functions and loops."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
import ranks
import torch

from megalign.engine.model import unwrapped
from megalign.engine.scores import score_tokens
from megalign.engine.taps import DeviceWords, output_rows, pool

RANGES = [(0, 10), (7, 40), (39, 96), (5, 5), (0, 96)]


def test_score_tokens_against_log_softmax(one_process: None) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = 30 * torch.randn(3, 5, 96, generator=generator)
    labels = torch.randint(0, 96, (3, 5), generator=generator)
    nll, *masses = score_tokens(logits, labels, RANGES)
    expected = torch.log_softmax(logits.double(), -1)
    torch.testing.assert_close(nll.double(), -expected.gather(-1, labels[..., None])[..., 0], rtol=1e-6, atol=2e-6)
    for (start, end), mass in zip(RANGES, masses, strict=True):
        torch.testing.assert_close(mass.double(), expected.exp()[..., start:end].sum(-1), rtol=1e-5, atol=1e-7)


def test_score_tokens_without_ranges_and_with_huge_logits(one_process: None) -> None:
    logits = torch.tensor([[[1e4, 0.0, -1e4], [88.0, 89.0, 90.0]]])
    (nll,) = score_tokens(logits, torch.tensor([[0, 1]]), [])
    assert nll[0, 0] == 0
    torch.testing.assert_close(nll[0, 1], torch.tensor(1 + np.log(1 + np.exp(-1) + np.exp(-2)), dtype=torch.float32))


def test_engine_scores_are_the_models(one_process: None) -> None:
    """Against the model's own logits, batch by batch; dropout is off while reading and on again afterwards."""
    model = cases.GPT.model_copy(update={"hidden_dropout": 0.3, "attention_dropout": 0.3})
    engine = cases.engine_of(ranks.layout_of(), model)
    batches = cases.cut(cases.windows(5, 4), 0, 1, 2)
    scores = engine.score(batches, {"clone": (45, 90)})
    assert all(chunk.training for chunk in engine.chunks)
    chunk: Any = unwrapped(engine.chunks[0]).eval()
    for batch, score in zip(batches, scores, strict=True):
        tokens = torch.from_numpy(batch.tokens)
        with torch.no_grad():
            logits = chunk(tokens, torch.arange(16)[None].expand(2, -1), None)
        expected = torch.log_softmax(logits.double(), -1)
        labels = torch.from_numpy(batch.labels)
        np.testing.assert_allclose(score.nll, -expected.gather(-1, labels[..., None])[..., 0], rtol=1e-5)
        np.testing.assert_allclose(score.mass["clone"], expected.exp()[..., 45:90].sum(-1), rtol=1e-5)
        assert score.nll.dtype == score.mass["clone"].dtype == np.float32


def test_pool_against_loops(one_process: None) -> None:
    words = DeviceWords.of(cases.words_of(0, ranks.layout_of(), 0), 0)
    batch = words.batch
    rows, width = batch.tokens.shape
    hidden = torch.randn(width, rows, 6, generator=torch.Generator().manual_seed(8))
    found = pool(hidden, words.tags, words.lengths, sequence_parallel=False)
    assert found.shape == (batch.num_words, 6)
    for word in range(batch.num_words):
        own = [hidden[c, r].double() for r in range(rows) for c in range(width) if batch.word_of_token[r, c] == word]
        torch.testing.assert_close(found[word].double(), sum(own) / len(own), rtol=1e-6, atol=1e-6)
    assert pool(hidden.bfloat16(), words.tags, words.lengths, sequence_parallel=False).dtype == torch.float32


def test_output_rows_against_loops(one_process: None) -> None:
    words = DeviceWords.of(cases.words_of(1, ranks.layout_of(), 0), 3)
    batch = words.batch
    weight = torch.randn(96, 6, generator=torch.Generator().manual_seed(9))
    found = output_rows(weight, words)
    for word in range(batch.num_words):
        own = [weight[token].double() for token in batch.tokens[batch.word_of_token == word]]
        torch.testing.assert_close(found[word].double(), sum(own) / len(own), rtol=1e-6, atol=1e-6)


def test_represent_against_each_word_alone(one_process: None) -> None:
    """Packed words have the vectors of the same words one to a row: positions start anew, neighbours are not seen."""
    engine = cases.engine_of(ranks.layout_of(), cases.MODELS["gpt"])
    table = cases.word_batches()
    batches = [table.all_of(np.arange(0, 5)), table.all_of(np.arange(5, 7))]
    together = engine.represent(batches)
    chunk: Any = unwrapped(engine.chunks[0])
    for batch, vectors in zip(batches, together, strict=True):
        assert vectors.shape == (cases.GPT.num_layers + 2, batch.num_words, cases.GPT.hidden_size)
        assert vectors.dtype == np.float32
        for word in range(batch.num_words):
            tokens = torch.from_numpy(batch.tokens[batch.word_of_token == word])
            with torch.no_grad():
                hidden = chunk.embedding(tokens[None], torch.arange(len(tokens))[None])
                levels = [hidden]
                for layer in chunk.decoder.layers:
                    hidden, _ = layer(hidden_states=hidden, attention_mask=None)
                    levels.append(hidden)
                expected = [level[:, 0].mean(0) for level in levels]
                expected.append(chunk.embedding.word_embeddings.weight[tokens].mean(0))
            np.testing.assert_allclose(vectors[:, word], torch.stack(expected), rtol=1e-4, atol=2e-6)


def test_hooks_are_gone_after_an_error(one_process: None) -> None:
    engine = cases.engine_of(ranks.layout_of())
    with pytest.raises(ZeroDivisionError), engine.taps.capturing([]):
        raise ZeroDivisionError
    layers = unwrapped(engine.chunks[0]).decoder.layers
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in layers)
