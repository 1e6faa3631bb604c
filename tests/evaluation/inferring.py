"""What the tests of language inference compute on a run's ranks."""

from __future__ import annotations

from pathlib import Path

from megalign.cluster.ownership import Ownership
from megalign.cluster.ranks import Rank
from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.config.tasks import NliConfig
from megalign.engine import groups
from megalign.errors import StoppedOnRequest
from megalign.evaluation.inference import evaluate_inference
from megalign.evaluation.scores import Score
from megalign.training.stop import StopRequest


def inference_of(layout: Layout, config: RunConfig, settings: NliConfig) -> list[Score]:
    """`evaluate_inference` under the layout."""
    parallel = config.model_copy(update={"parallel": layout.parallel})
    return evaluate_inference(parallel, Rank(groups.rank(), layout.world_size, groups.rank(), "", "torchrun"), settings)


def stopped_inference_of(layout: Layout, config: RunConfig, settings: NliConfig, at: int) -> list[Score]:
    """The same, with a request to stop that comes before step `at`."""
    calls = iter(range(1, 10**9))

    def interrupt(self: StopRequest) -> None:
        if next(calls) == at:
            raise StoppedOnRequest("Asked to stop.")

    StopRequest.interrupt = interrupt  # type: ignore[method-assign]
    return inference_of(layout, config, settings)


def superseded_inference_of(layout: Layout, config: RunConfig, settings: NliConfig) -> list[Score]:
    """The same, while another process takes the run over."""
    StopRequest.interrupt = lambda self: Ownership.claim(Path(config.folder), "eval")  # type: ignore[method-assign]
    return inference_of(layout, config, settings)
