"""FP8: every refused combination has its reason; reading computes without it."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
import ranks
from packaging.version import Version

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, ParallelConfig, PrecisionConfig
from megalign.engine.precision import Machine, check_precision
from megalign.errors import ConfigError, EnvironmentProblem, MegalignError

MODEL = ModelConfig(num_layers=4, hidden_size=128, num_attention_heads=4, ffn_hidden_size=512, sequence_length=256)
HOPPER, BLACKWELL, AMPERE = (9, 0), (10, 0), (8, 0)


def machine(library: str | None = "2.9.0", capability: tuple[int, int] | None = HOPPER) -> Machine:
    return Machine(Version(library) if library else None, capability)


def bf16(**settings: Any) -> PrecisionConfig:
    return PrecisionConfig(dtype="bfloat16", **settings)


def layout(**parallel: Any) -> Layout:
    return Layout(ParallelConfig(**parallel))


@pytest.mark.parametrize(
    ("precision", "where", "parallel", "kind", "message"),
    [
        (bf16(fp8="delayed"), machine(None), {}, EnvironmentProblem, "but transformer_engine is not installed"),
        (bf16(fp8="delayed"), machine("2.9", None), {}, EnvironmentProblem, "but there is no CUDA device"),
        (PrecisionConfig(fp8="tensorwise"), machine(), {}, ConfigError, "with precision.dtype float32"),
        (bf16(fp8="blockwise"), machine("2.2"), {}, EnvironmentProblem, "needs TransformerEngine 2.3; 2.2 is"),
        (bf16(fp8="mxfp8"), machine(), {}, EnvironmentProblem, "capability 10.0; this one has 9.0. Choose delayed or "),
        (bf16(fp8="delayed"), machine(capability=AMPERE), {}, EnvironmentProblem, "has 8.0. Unset precision.fp8"),
        (bf16(bf16_layers_at_start=1), machine(), {}, ConfigError, "without precision.fp8"),
        (bf16(fp8="delayed", bf16_layers_at_end=1), machine(), {}, ConfigError, "cannot leave some out"),
        (bf16(fp8="tensorwise", bf16_layers_at_start=2, bf16_layers_at_end=2), machine(), {}, ConfigError, "4 of 4"),
        (
            bf16(fp8="delayed"),
            machine(),
            {"tensor": 16},
            ConfigError,
            "hidden_size 128 over 16 ranks is not a multiple",
        ),
        (
            bf16(fp8="mxfp8"),
            machine(capability=BLACKWELL),
            {"tensor": 4, "sequence_parallel": True, "context": 4},
            ConfigError,
            "sequence_length 256 over 16 ranks is not a multiple of 32",
        ),
    ],
)
def test_what_would_be_ignored_or_fail_late_is_refused(
    precision: PrecisionConfig, where: Machine, parallel: dict[str, Any], kind: type[MegalignError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        check_precision(MODEL, layout(**parallel), precision, where)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("precision", "where"),
    [
        (PrecisionConfig(), machine(None, None)),
        (bf16(), machine(None, None)),
        (bf16(fp8="delayed"), machine("2.0", (8, 9))),
        (bf16(fp8="tensorwise", bf16_layers_at_start=1, bf16_layers_at_end=1), machine()),
        (bf16(fp8="blockwise"), machine()),
        (bf16(fp8="mxfp8"), machine(capability=BLACKWELL)),
    ],
)
def test_what_the_machine_can_do_is_taken(precision: PrecisionConfig, where: Machine) -> None:
    check_precision(MODEL, layout(), precision, where)


def fp8_while_computing(layout: Layout) -> tuple[list[Any], list[Any], Any]:
    """config.fp8 as the layers see it while training and while reading. Without TransformerEngine it changes nothing."""
    engine = cases.engine_of(layout)
    engine.config.fp8 = "hybrid"
    seen: list[Any] = []
    hook = engine.chunks[0].register_forward_pre_hook(lambda *_: seen.append(engine.config.fp8))
    cases.pretrain(engine, 1, 1)
    training, seen[:] = list(seen), []
    engine.score(cases.cut(cases.windows(9, 2), 0, 1, 1))
    engine.represent([cases.word_batches().all_of(np.arange(4))])
    hook.remove()
    return training, seen, engine.config.fp8


def test_reading_computes_without_fp8() -> None:
    ((training, reading, afterwards),) = ranks.run(fp8_while_computing, ranks.layout_of())
    assert set(training) == {"hybrid"}
    assert len(reading) == 2
    assert set(reading) == {None}
    assert afterwards == "hybrid"
