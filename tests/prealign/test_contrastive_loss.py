"""The contrastive loss against a float64 reference written out with loops, on one rank and on several."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from megalign.errors import ConfigError
from megalign.prealign.loss import alignment_metrics, supervised_contrastive


def reference(z: torch.Tensor, entry: list[int], surface: list[int], temperature: float) -> torch.Tensor:
    """Khosla et al. 2020, Eq. 2, sum by sum; autograd gives its gradient."""
    terms = []
    count = len(entry)
    for i in range(count):
        positives = [j for j in range(count) if j != i and entry[j] == entry[i]]
        others = [j for j in range(count) if j != i and (entry[j] == entry[i] or surface[j] != surface[i])]
        if not positives:
            continue
        score = {j: (z[i] @ z[j]) / (z[i].norm() * z[j].norm()) / temperature for j in others}
        total = torch.stack([score[a].exp() for a in others]).sum().log()
        terms.append(-torch.stack([score[p] - total for p in positives]).sum() / len(positives))
    return torch.stack(terms).mean() if terms else z.sum() * 0.0


def reference_gradient(
    z: torch.Tensor, entry: list[int], surface: list[int], temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = z.detach().double().requires_grad_()
    loss = reference(leaf, entry, surface, temperature)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def words(count: int, hidden: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Ranks:
    """Data-parallel ranks as threads of one process; `gather` waits for all of them, as a collective does."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.slots: list[torch.Tensor | None] = [None] * world
        self.barrier = threading.Barrier(world, timeout=60)
        self.num_gathers = [0] * world

    def gather(self, rank: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def all_gather(x: torch.Tensor) -> torch.Tensor:
            self.num_gathers[rank] += 1
            self.slots[rank] = x.detach().clone()
            self.barrier.wait()
            everyone = torch.cat([slot for slot in self.slots if slot is not None])
            self.barrier.wait()
            return everyone

        return all_gather

    def run(self, function: Callable[[int], None]) -> None:
        errors: list[BaseException] = []

        def guarded(rank: int) -> None:
            try:
                function(rank)
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


ENTRY = [0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 4, 5, 6, 6]
# Word 4 looks like word 7, word 5 like word 9, and words 12 and 13 look alike within one entry.
SURFACE = [0, 1, 2, 3, 4, 5, 6, 4, 8, 5, 10, 11, 12, 12]


@pytest.mark.parametrize("chunk_size", [1, 3, 4096])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_value_and_gradient_are_the_reference(chunk_size: int, temperature: float) -> None:
    z = words(len(ENTRY))
    expected, gradient = reference_gradient(z, ENTRY, SURFACE, temperature)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        own = z.to(dtype, copy=True).requires_grad_()
        loss = supervised_contrastive(
            own, torch.tensor(ENTRY), torch.tensor(SURFACE), temperature=temperature, chunk_size=chunk_size
        )
        loss.backward()
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
        assert own.grad is not None
        torch.testing.assert_close(own.grad.double(), gradient, rtol=0, atol=tolerance * gradient.abs().max().item())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(0, 1000),
)
def test_any_entries_and_surfaces(pairs: list[tuple[int, int]], chunk_size: int, seed: int) -> None:
    entry, surface = [e for e, _ in pairs], [s for _, s in pairs]
    z = words(len(pairs), seed=seed)
    expected, gradient = reference_gradient(z, entry, surface, 0.2)
    own = z.clone().requires_grad_()
    loss = supervised_contrastive(
        own, torch.tensor(entry), torch.tensor(surface), temperature=0.2, chunk_size=chunk_size
    )
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(own.grad, gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shares", [(7, 7), (3, 6, 5), (1, 0, 13), (4, 4, 4, 2)])
@pytest.mark.parametrize("chunk_size", [2, 4096])
def test_ranks_together_have_the_gradient_of_the_global_loss(shares: tuple[int, ...], chunk_size: int) -> None:
    """Also where an entry's words lie on two ranks; the gradient is not divided by the number of ranks."""
    z = words(len(ENTRY))
    expected, gradient = reference_gradient(z, ENTRY, SURFACE, 0.1)
    entry, surface = torch.tensor(ENTRY), torch.tensor(SURFACE)
    ranks = Ranks(len(shares))
    own = [part.clone().requires_grad_() for part in z.split(shares)]
    losses: list[float] = [math.nan] * len(shares)

    def step(rank: int) -> None:
        loss = supervised_contrastive(
            own[rank],
            entry,
            surface,
            temperature=0.1,
            gather=ranks.gather(rank),
            local_start=sum(shares[:rank]),
            chunk_size=chunk_size,
        )
        before = list(ranks.num_gathers)
        loss.backward()
        assert ranks.num_gathers[rank] == before[rank], "the backward pass must not wait for other ranks"
        losses[rank] = loss.item()

    ranks.run(step)
    assert losses == pytest.approx([expected.item()] * len(shares), rel=1e-12)
    together = torch.cat([part.grad for part in own if part.grad is not None])
    torch.testing.assert_close(together, gradient, rtol=0, atol=1e-12 * gradient.abs().max().item())


def test_gathers_are_the_same_with_and_without_gradient() -> None:
    ranks = Ranks(1)
    z, entry, surface = words(len(ENTRY)), torch.tensor(ENTRY), torch.tensor(SURFACE)
    with torch.no_grad():
        supervised_contrastive(z, entry, surface, temperature=0.1, gather=ranks.gather(0))
    without = ranks.num_gathers[0]
    supervised_contrastive(z.requires_grad_(), entry, surface, temperature=0.1, gather=ranks.gather(0))
    assert without == 2
    assert ranks.num_gathers[0] == 2 * without


def test_backward_scales_with_what_comes_after() -> None:
    z, entry, surface = words(len(ENTRY)).requires_grad_(), torch.tensor(ENTRY), torch.tensor(SURFACE)
    loss = supervised_contrastive(z, entry, surface, temperature=0.1)
    (plain,) = torch.autograd.grad(loss, z, retain_graph=True)
    (scaled,) = torch.autograd.grad(3.0 * loss, z)
    torch.testing.assert_close(scaled, 3.0 * plain)


def aligned_pairs(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Perfectly aligned pairs, orthogonal to each other."""
    z = torch.eye(count).repeat_interleave(2, dim=0)
    return z, torch.arange(count).repeat_interleave(2), torch.arange(2 * count)


def test_64_aligned_pairs_have_almost_no_loss() -> None:
    """Multiplying self pairs by 0 instead of excluding them leaves ln 2 = 0.69, and 5.55 with padding as negatives."""
    z, entry, surface = aligned_pairs(64)
    loss = supervised_contrastive(z, entry, surface, temperature=0.1)
    assert loss.item() == pytest.approx(math.log1p(126 * math.exp(-10)), rel=1e-3)
    assert loss.item() < 0.006


def test_both_words_of_a_pair_are_anchors() -> None:
    """Half of the anchors alone give another value; and the order of the words does not matter."""
    z, entry, surface = words(8), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), torch.arange(8)
    loss = supervised_contrastive(z, entry, surface, temperature=0.1)
    order = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
    swapped = supervised_contrastive(z[order], entry[order], surface[order], temperature=0.1)
    assert loss.item() == pytest.approx(swapped.item(), rel=1e-12)
    unit = torch.nn.functional.normalize(z, dim=1)
    scores = (unit @ unit.T / 0.1).fill_diagonal_(-torch.inf)
    one_direction = torch.nn.functional.cross_entropy(scores[0::2], torch.arange(1, 8, 2))
    other_direction = torch.nn.functional.cross_entropy(scores[1::2], torch.arange(0, 8, 2))
    assert abs(one_direction - other_direction) > 0.01
    assert loss.item() == pytest.approx((one_direction + other_direction).item() / 2, rel=1e-12)


def test_one_surface_is_never_its_own_negative() -> None:
    """Two entries share a translation: as a negative at cosine 1 it would put a floor of about ln 2 under the loss."""
    z, entry, surface = aligned_pairs(8)
    z[3] = z[1]
    z[2] = z[1]
    surface[3] = surface[1]
    surface[2] = surface[0]
    as_ours = supervised_contrastive(z, entry, surface, temperature=0.1)
    as_others = supervised_contrastive(z, entry, torch.arange(16), temperature=0.1)
    assert as_others > as_ours + 0.09


def test_a_batch_without_positives_is_zero_with_zero_gradient() -> None:
    z = words(5).requires_grad_()
    loss = supervised_contrastive(z, torch.arange(5), torch.arange(5), temperature=0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert z.grad is not None
    assert z.grad.abs().max() == 0.0


def test_a_zero_vector_gives_a_finite_loss_and_gets_no_gradient() -> None:
    z = words(len(ENTRY))
    z[4] = 0.0
    z.requires_grad_()
    loss = supervised_contrastive(z, torch.tensor(ENTRY), torch.tensor(SURFACE), temperature=0.1)
    loss.backward()
    assert torch.isfinite(loss)
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert z.grad[4].abs().max() == 0.0
    assert z.grad[3].abs().max() > 0.0


def test_a_small_temperature_neither_overflows_nor_underflows() -> None:
    z = words(len(ENTRY))
    z[:, 0] -= 100.0
    z[::2] *= -1.0
    expected, gradient = reference_gradient(z, ENTRY, SURFACE, 0.005)
    own = z.float().requires_grad_()
    loss = supervised_contrastive(own, torch.tensor(ENTRY), torch.tensor(SURFACE), temperature=0.005)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert own.grad is not None
    torch.testing.assert_close(own.grad.double(), gradient, rtol=0, atol=1e-3 * gradient.abs().max().item())


def test_half_precision_words_and_autocast_are_computed_in_float32() -> None:
    z = words(len(ENTRY)).bfloat16()
    entry, surface = torch.tensor(ENTRY), torch.tensor(SURFACE)
    expected, gradient = reference_gradient(z, ENTRY, SURFACE, 0.1)
    own = z.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = supervised_contrastive(own, entry, surface, temperature=0.1)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert own.grad is not None
    assert own.grad.dtype == torch.bfloat16
    torch.testing.assert_close(own.grad.double(), gradient, rtol=0.01, atol=1e-2 * gradient.abs().max().item())


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.num_elements = max(self.num_elements, value.numel())
        return result


def test_no_tensor_is_larger_than_the_words_or_a_tile() -> None:
    count, hidden, chunk = 600, 16, 64
    z = words(count, hidden).float().requires_grad_()
    entry = torch.arange(count) // 3
    with LargestTensor() as largest:
        loss = supervised_contrastive(z, entry, torch.arange(count), temperature=0.1, chunk_size=chunk)
        kept = [tuple(tensor.shape) for tensor in loss.grad_fn.saved_tensors]
        loss.backward()
    assert 0 < largest.num_elements <= max(count * hidden, chunk * chunk)
    assert kept == [(count, hidden)]


def test_wrong_use_is_refused() -> None:
    z, entry = words(4), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ConfigError, match=r"temperature 0.0 and chunk size 4096"):
        supervised_contrastive(z, entry, entry, temperature=0.0)
    with pytest.raises(ConfigError, match=r"chunk size 0"):
        supervised_contrastive(z, entry, entry, temperature=0.1, chunk_size=0)
    with pytest.raises(ValueError, match=r"expected z \[n, h\], entry \[N\], surface \[N\]"):
        supervised_contrastive(z[0], entry, entry, temperature=0.1)
    with pytest.raises(ValueError, match="own words 2 to 6 are not within the 4 words"):
        supervised_contrastive(z, entry, entry, temperature=0.1, local_start=2)
    with pytest.raises(ValueError, match="gathered 4 words, but there are entries of 6"):
        supervised_contrastive(z, torch.arange(6), torch.arange(6), temperature=0.1)


@pytest.mark.parametrize("chunk_size", [1, 5, 4096])
def test_metrics_are_what_loops_give(chunk_size: int) -> None:
    z = words(len(ENTRY))
    aligned, random, pairs, hits = [], [], [], []
    for i in range(len(ENTRY)):
        best_positive, best_negative = -2.0, -2.0
        for j in range(len(ENTRY)):
            if i == j:
                continue
            cosine = torch.nn.functional.cosine_similarity(z[i], z[j], dim=0).item()
            unit_i, unit_j = z[i] / z[i].norm(), z[j] / z[j].norm()
            pairs.append(math.exp(-2.0 * ((unit_i - unit_j) ** 2).sum().item()))
            if ENTRY[i] == ENTRY[j]:
                aligned.append(cosine)
                best_positive = max(best_positive, cosine)
            elif SURFACE[i] != SURFACE[j]:
                random.append(cosine)
                best_negative = max(best_negative, cosine)
        if best_positive > -2.0:
            hits.append(best_positive > best_negative)
    found = alignment_metrics(z, torch.tensor(ENTRY), torch.tensor(SURFACE), chunk_size=chunk_size)
    assert found.aligned_cosine == pytest.approx(sum(aligned) / len(aligned), rel=1e-12)
    assert found.random_cosine == pytest.approx(sum(random) / len(random), rel=1e-10)
    assert found.retrieval_at_1 == pytest.approx(sum(hits) / len(hits))
    assert found.uniformity == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-12)


def test_metrics_at_the_extremes() -> None:
    z, entry, surface = aligned_pairs(8)
    perfect = alignment_metrics(z, entry, surface)
    assert (perfect.aligned_cosine, perfect.random_cosine, perfect.retrieval_at_1) == (1.0, 0.0, 1.0)
    collapsed = alignment_metrics(torch.ones(16, 4, dtype=torch.float64), entry, surface)
    assert collapsed.retrieval_at_1 == 0.0
    assert collapsed.uniformity == pytest.approx(0.0, abs=1e-12)
    alone = alignment_metrics(torch.ones(1, 4), torch.zeros(1), torch.zeros(1))
    assert all(math.isnan(value) for value in alone)


PEAK_MEMORY = """
import sys, torch
from pathlib import Path
from megalign.prealign.loss import supervised_contrastive
torch.set_num_threads(1)
def peak():  # of this program; getrusage would begin with the parent's
    return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])
words, chunk = int(sys.argv[1]), int(sys.argv[2])
z = torch.randn(words, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
entry, surface = torch.arange(words) // 5, torch.arange(words)
supervised_contrastive(z[:20], entry[:20], surface[:20], temperature=0.1).backward()
before = peak()
supervised_contrastive(z, entry, surface, temperature=0.1, chunk_size=chunk).backward()
print(peak() - before)
"""


def peak_memory_kib(words: int, chunk_size: int) -> int:
    """How much a loss and its gradient raise a process's peak memory."""
    command = [sys.executable, "-c", PEAK_MEMORY, str(words), str(chunk_size)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_is_that_of_a_few_tiles() -> None:
    """6000 words: the matrix of all pairs has 137 MiB, a tile of 512 x 512 one."""
    matrix_kib, tile_kib = 6000 * 6000 * 4 // 1024, 512 * 512 * 4 // 1024
    assert peak_memory_kib(6000, 6000) > 2 * matrix_kib
    tiled = peak_memory_kib(6000, 512)
    assert tiled < 16 * tile_kib + 6000 * 32 * 4 * 10 // 1024
    assert tiled < matrix_kib / 4
