"""The classification head: its gradient beside a model written out in float64, and the same training in every layout."""

from __future__ import annotations

from pathlib import Path

import cases
import labelled
import numpy as np
import pytest
import ranks

from megalign.errors import ConfigError

SINGLE = ranks.layout_of()
LAYOUTS = {
    "data": ({"data": 2}, 1),
    "tensor": ({"tensor": 2}, 1),
    "sequence": ({"tensor": 2, "sequence_parallel": True}, 1),
    "pipeline": ({"pipeline": 2}, 2),
    "interleaved": ({"pipeline": 2, "virtual_pipeline": 2}, 2),
    "cut optimizer": ({"data": 2, "distributed_optimizer": True}, 2),
}


def test_the_gradient_is_that_of_the_model_written_out() -> None:
    (found,) = ranks.run(labelled.first_gradients, SINGLE, cases.GPT)
    loss, gradients = labelled.reference(cases.GPT, found["weights"], labelled.batch_of(1))
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    for name, expected in gradients.items():
        assert np.allclose(found["gradients"][name], expected, atol=2e-6), name
    assert np.abs(gradients["classification_head.weight"]).max() > 1e-2


@pytest.fixture(scope="module")
def alone() -> dict[str, dict]:
    return {name: ranks.run(labelled.train, SINGLE, cases.MODELS[name], 3, 1)[0] for name in ("gpt", "llama")}


@pytest.mark.parametrize("model", ["gpt", "llama"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_does_not_enter(name: str, model: str, alone: dict[str, dict]) -> None:
    parallel, num_batches = LAYOUTS[name]
    everyone = ranks.run(labelled.train, ranks.layout_of(**parallel), cases.MODELS[model], 3, num_batches)
    for found in everyone:
        assert found["losses"] == pytest.approx(alone[model]["losses"], rel=1e-5)
        assert found["norms"] == pytest.approx(alone[model]["norms"], rel=1e-4)
        assert np.allclose(found["logits"], alone[model]["logits"], atol=2e-5)


@pytest.mark.parametrize("name", ["tensor", "pipeline"])
def test_checkpoints_with_and_without_a_head(name: str, tmp_path: Path) -> None:
    for found in ranks.run(labelled.head_after_loading, ranks.layout_of(**LAYOUTS[name][0]), cases.GPT, tmp_path):
        assert found["loaded"]
        assert found["same"] < 1e-6


def test_rows_with_labels_are_not_cut() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.context is 2; a classification head reads rows that are not cut"):
        labelled.classifier(ranks.layout_of(context=2), cases.GPT)
