"""The multi-word contrastive loss of the alignment injection and the measures that go with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megalign.errors import ConfigError

Gather = Callable[[Tensor], Tensor]


def supervised_contrastive(
    z: Tensor,
    entry: Tensor,
    surface: Tensor,
    *,
    temperature: float,
    gather: Gather | None = None,
    local_start: int = 0,
    chunk_size: int = 4096,
) -> Tensor:
    """Supervised contrastive loss over the words of all data-parallel ranks.

    The "out" form of Khosla et al. 2020 (arXiv 2004.11362, Eq. 2) with PreAlign's positives: with s_ij = cos(z_i, z_j) / t,

        loss = mean over anchors i with P(i) non-empty of
               logsumexp over a in A(i) of s_ia  -  mean over p in P(i) of s_ip

    P(i) are the other words of the entry of i. A(i) are all other words but those that look like i and belong to another
    entry: one form is never its own negative. P(i) is part of A(i).

    Every rank returns the loss of the global batch. Its gradient with respect to the own words is complete: it holds what
    they contribute as anchors and what they contribute as other ranks' positives and negatives, so the sum of parameter
    gradients over the ranks is the gradient of the global loss. There is no collective in the backward pass; the forward
    pass makes two, with and without gradients alike, the second of two numbers per word.

    Similarities are computed in tiles of `chunk_size` x `chunk_size`: memory is that of the gathered words plus a few tiles.

    Args:
        z: own words, float [own words, hidden]; computed in float32 (float64 stays float64). A zero vector has cosine 0
            with every word and receives no gradient.
        entry: table entry of the words of all ranks, int64 [words].
        surface: surface form of the words of all ranks, int64 [words].
        temperature: t.
        gather: concatenation [words, ...] of the ranks' tensors [own words, ...] in rank order; None for one rank.
        local_start: the own words are `local_start` to `local_start + own words - 1` of all.
        chunk_size: edge of a tile, in words.

    Returns:
        The loss, a scalar of the dtype it was computed in; 0 if no word has a positive.

    Raises:
        ConfigError: the temperature or the chunk size is not positive.
        ValueError: the shapes do not fit each other.
    """
    if temperature <= 0 or chunk_size < 1:
        raise ConfigError(
            f"The contrastive loss has temperature {temperature} and chunk size {chunk_size}.", fix="Set both above 0."
        )
    if z.dim() != 2 or entry.shape != surface.shape or entry.dim() != 1:
        raise ValueError(f"expected z [n, h], entry [N], surface [N]; got {z.shape}, {entry.shape}, {surface.shape}")
    if not 0 <= local_start <= local_start + len(z) <= len(entry):
        raise ValueError(f"own words {local_start} to {local_start + len(z)} are not within the {len(entry)} words")
    wants_gradient = torch.is_grad_enabled() and z.requires_grad
    tiles = _Tiles(entry, surface, temperature, chunk_size, local_start, len(z))
    loss: Tensor = _SupervisedContrastive.apply(_unit(z), tiles, gather or _identity, wants_gradient)
    return loss


def _identity(x: Tensor) -> Tensor:
    return x


def _unit(z: Tensor) -> Tensor:
    """Rows of length 1 in float32 (or float64); zero rows stay zero, with gradient zero."""
    z = z if z.dtype == torch.float64 else z.float()
    norm = z.norm(dim=1, keepdim=True)
    return z / torch.where(norm > 0, norm, torch.inf)


class _Masks(NamedTuple):
    """Which words of a tile are other words (A) and positives (P) of the own words, bool [rows, columns]."""

    others: Tensor
    positives: Tensor


class _Tiles(NamedTuple):
    """The pairs (own word, word) in tiles."""

    entry: Tensor
    surface: Tensor
    temperature: float
    chunk_size: int
    local_start: int
    num_own: int

    def rows(self) -> list[slice]:
        """Own words in chunks, as slices of the own words."""
        return [slice(a, min(a + self.chunk_size, self.num_own)) for a in range(0, self.num_own, self.chunk_size)]

    def columns(self) -> list[slice]:
        """All words in chunks."""
        total = len(self.entry)
        return [slice(a, min(a + self.chunk_size, total)) for a in range(0, total, self.chunk_size)]

    def masks(self, rows: slice, columns: slice) -> _Masks:
        index = torch.arange(len(self.entry), device=self.entry.device)
        own = slice(self.local_start + rows.start, self.local_start + rows.stop)
        not_self = index[own, None] != index[None, columns]
        same_entry = self.entry[own, None] == self.entry[None, columns]
        same_surface = self.surface[own, None] == self.surface[None, columns]
        return _Masks(not_self & (same_entry | ~same_surface), not_self & same_entry)

    def num_positives(self) -> Tensor:
        """|P(i)| of all words, int64 [words]."""
        _, member, size = torch.unique(self.entry, return_inverse=True, return_counts=True)
        return size[member] - 1


class _SupervisedContrastive(torch.autograd.Function):
    """The loss of unit vectors, with its gradient computed beside it: afterwards only that gradient is kept."""

    @staticmethod
    def forward(ctx: Any, unit: Tensor, tiles: _Tiles, gather: Gather, wants_gradient: bool) -> Tensor:
        # Under autocast the similarities would be rounded to 16 bits.
        with torch.autocast(unit.device.type, enabled=False):
            everyone = gather(unit)
            if len(everyone) != len(tiles.entry):
                raise ValueError(f"gathered {len(everyone)} words, but there are entries of {len(tiles.entry)}")
            num_positives = tiles.num_positives()
            own_positives = num_positives[tiles.local_start : tiles.local_start + tiles.num_own]
            log_total, attraction = _anchor_terms(unit, everyone, tiles)
            terms = gather(torch.stack([log_total, attraction / own_positives.clamp(min=1)], dim=1))
            anchors = num_positives > 0
            num_anchors = anchors.sum().clamp(min=1)
            loss = torch.where(anchors, terms[:, 0] - terms[:, 1], 0.0).sum() / num_anchors
            if wants_gradient:
                # exp(s - inf) = 0 takes words that are no anchors out of the gradient.
                log_totals = torch.where(anchors, terms[:, 0], torch.inf)
                gradient = _gradient(unit, everyone, log_totals, num_positives, tiles) / num_anchors
                ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad_loss * gradient, None, None, None


def _anchor_terms(unit: Tensor, everyone: Tensor, tiles: _Tiles) -> tuple[Tensor, Tensor]:
    """Per own word: logsumexp over A(i) of the similarities, and their sum over P(i); [own words] each."""
    log_total = unit.new_full((tiles.num_own,), -torch.inf)
    attraction = unit.new_zeros(tiles.num_own)
    for rows in tiles.rows():
        for columns in tiles.columns():
            masks = tiles.masks(rows, columns)
            similarity = unit[rows] @ everyone[columns].T / tiles.temperature
            attraction[rows] += similarity.masked_fill(~masks.positives, 0.0).sum(dim=1)
            tile = torch.logsumexp(similarity.masked_fill_(~masks.others, -torch.inf), dim=1)
            log_total[rows] = torch.logaddexp(log_total[rows], tile)
    return log_total, attraction


def _gradient(unit: Tensor, everyone: Tensor, log_totals: Tensor, num_positives: Tensor, tiles: _Tiles) -> Tensor:
    """Gradient of the sum over all anchors with respect to the own words' unit vectors, [own words, hidden].

    With G_ij = d loss_i / d s_ij = [j in A(i)] exp(s_ij - log_total_i) - [j in P(i)] / |P(i)|, word k receives G_kj from its
    own anchor row and G_jk from the anchor row of every j. s, A and P are symmetric and the words of an entry have equally
    many positives, so both come from one tile.
    """
    gradient = torch.zeros_like(unit)
    # A word without positives is in nobody's P: the clamp only avoids 1 / 0.
    share = 1.0 / num_positives.clamp(min=1).to(unit.dtype)
    for rows in tiles.rows():
        own = slice(tiles.local_start + rows.start, tiles.local_start + rows.stop)
        for columns in tiles.columns():
            masks = tiles.masks(rows, columns)
            similarity = unit[rows] @ everyone[columns].T / tiles.temperature
            weight = torch.exp(similarity - log_totals[own, None]) + torch.exp(similarity - log_totals[None, columns])
            weight.masked_fill_(~masks.others, 0.0)
            weight -= masks.positives * (2.0 * share[own, None])
            gradient[rows] += weight @ everyone[columns]
    return gradient / tiles.temperature


class AlignmentMetrics(NamedTuple):
    """How well the words of a batch are aligned; nan where there is no pair to measure.

    Attributes:
        aligned_cosine: mean cosine over the pairs of different words of one entry.
        random_cosine: mean cosine over the pairs of different forms from different entries.
        retrieval_at_1: share of the anchors whose nearest other word is of their own entry, strictly nearer than any
            negative (so that a collapsed space, where all cosines are equal, scores 0).
        uniformity: log of the mean of exp(-2 |u_i - u_j|^2) over all pairs of words (Wang & Isola 2020,
            arXiv 2005.10242); 0 is total collapse, lower is more uniform.
    """

    aligned_cosine: float
    random_cosine: float
    retrieval_at_1: float
    uniformity: float


@torch.no_grad()
def alignment_metrics(z: Tensor, entry: Tensor, surface: Tensor, *, chunk_size: int = 4096) -> AlignmentMetrics:
    """Alignment of one batch of words.

    Args:
        z: words, float [words, hidden]; computed in float32 (float64 stays float64).
        entry: table entry of each word, int64 [words].
        surface: surface form of each word, int64 [words].
        chunk_size: edge of a tile, in words.
    """
    unit = _unit(z)
    tiles = _Tiles(entry, surface, 1.0, chunk_size, 0, len(unit))
    nearest = unit.new_full((2, len(unit)), -torch.inf)
    sums = torch.zeros(3, dtype=torch.float64, device=unit.device)
    counts = torch.zeros(2, dtype=torch.int64, device=unit.device)
    for rows in tiles.rows():
        for columns in tiles.columns():
            others, positives = tiles.masks(rows, columns)
            negatives = others & ~positives
            cosine = unit[rows] @ unit[columns].T
            for kind, mask in enumerate((positives, negatives)):
                sums[kind] += cosine.masked_fill(~mask, 0.0).sum(dtype=torch.float64)
                counts[kind] += mask.sum()
                best = cosine.masked_fill(~mask, -torch.inf).amax(dim=1)
                nearest[kind, rows] = torch.maximum(nearest[kind, rows], best)
            # |u - v|^2 = 2 - 2 u.v for unit vectors
            sums[2] += torch.exp(4.0 * cosine - 4.0).sum(dtype=torch.float64)
    # Each word with itself has cosine 1.
    self_terms = torch.exp(4.0 * (unit * unit).sum(dim=1) - 4.0).sum(dtype=torch.float64)
    num_pairs = len(unit) * (len(unit) - 1)
    uniformity = torch.log((sums[2] - self_terms) / num_pairs)
    anchors = tiles.num_positives() > 0
    hits = (nearest[0] > nearest[1])[anchors].double()
    return AlignmentMetrics(
        aligned_cosine=float(sums[0] / counts[0]),
        random_cosine=float(sums[1] / counts[1]),
        retrieval_at_1=float(hits.mean()),
        uniformity=float(uniformity) if num_pairs else float("nan"),
    )
