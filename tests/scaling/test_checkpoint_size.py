"""The size of a checkpoint against one on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ranks import layout_of, run
from saved_checkpoints import saved

from megalign.config import ModelConfig, PrecisionConfig
from megalign.scaling.memory import checkpoint_bytes

MODEL = ModelConfig(
    num_layers=4,
    hidden_size=128,
    num_attention_heads=4,
    ffn_hidden_size=512,
    sequence_length=32,
    vocab_size_multiple=128,
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("parallel", [{}, {"data": 2, "distributed_optimizer": True}, {"pipeline": 2}], ids=str)
def test_a_checkpoint_is_as_large_as_is_told(tmp_path: Path, parallel: dict[str, Any], dtype: Any) -> None:
    precision = PrecisionConfig(dtype=dtype)
    num_parameters = run(saved, layout_of(**parallel), MODEL, precision, str(tmp_path))[0]
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    told = checkpoint_bytes(
        num_parameters, precision, distributed_optimizer=bool(parallel.get("distributed_optimizer"))
    )
    # The index, headers and the marker do not grow with the tensors: 0.4 MB here.
    assert told < size < told + 600_000
