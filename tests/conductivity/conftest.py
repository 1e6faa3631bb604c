"""Models that are built once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "answers"))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ours; read-only."""
    return tiny.run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """A Hugging Face model with the run's tokenizer, so that rows are short; read-only."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tiny_run.parent / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        eos_token_id=0,
        bos_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        # LoRA leaves the embeddings as they are: with small random ones there is nothing to steer.
        for parameter in (model.model.embed_tokens.weight, model.lm_head.weight):
            parameter.normal_(0.0, 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
