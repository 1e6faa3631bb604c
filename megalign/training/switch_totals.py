"""Words switched since the beginning of pretraining, over all ranks and all resumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megalign.engine import groups
from megalign.training.samples import Samples, SwitchCounts


class SwitchTotals:
    """Adds what all data-parallel ranks count to what a checkpoint had counted.

    Args:
        samples: counts the words of this rank's windows.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self._own = dict(samples.counts_by_language)
        self._before = {language: SwitchCounts() for language in samples.counts_by_language}
        # Checkpoints of older versions know the sum over languages alone.
        self._unknown_before = SwitchCounts()

    def counted(self) -> Callable[[], None]:
        """What takes over the counts as they stand now, when the step they belong to is taken."""
        seen = dict(self.samples.counts_by_language)

        def take() -> None:
            self._own = seen

        return take

    def metrics(self) -> dict[str, Any]:
        """Share of the words that were switched, in all and by language of the source; a collective."""
        if self.samples.switcher is None:
            return {}
        totals = self._totals()
        rates = {language: counts.rate for language, counts in totals.items() if counts.words}
        return {"codeswitch_rate": self._sum(totals).rate, "codeswitch_rate_by_language": rates}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; a collective."""
        totals = self._totals()
        whole = self._sum(totals)
        return {
            "words_seen_covered_switched": whole.to_list(),
            "switch_counts": {language: counts.to_list() for language, counts in totals.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        known = state.get("switch_counts", {})
        self._before = {
            language: SwitchCounts(*known[language]) if language in known else SwitchCounts()
            for language in self.samples.counts_by_language
        }
        # Also the words of languages that are read no more.
        whole = state.get("words_seen_covered_switched", [0, 0, 0])
        listed = sum(self._before.values(), start=SwitchCounts())
        self._unknown_before = SwitchCounts(*(a - b for a, b in zip(whole, listed.to_list(), strict=True)))

    def _totals(self) -> dict[str, SwitchCounts]:
        own = self._own
        summed = groups.sum_counts([number for counts in own.values() for number in counts.to_list()])
        return {
            language: self._before[language] + SwitchCounts(*summed[3 * place : 3 * place + 3])
            for place, language in enumerate(own)
        }

    def _sum(self, totals: dict[str, SwitchCounts]) -> SwitchCounts:
        return sum(totals.values(), start=self._unknown_before)
