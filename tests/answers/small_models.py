"""Tiny Hugging Face models with weights large enough to answer differently to different prompts."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch

from megalign.corpus.procedural import ProceduralEnglish
from megalign.corpus.tokenizer import train_tokenizer

KINDS = ("gpt2", "llama", "bloom")
MAX_LENGTH = {"gpt2": 64, "llama": 96}
CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"


def texts(count: int = 40) -> list[str]:
    return list(itertools.islice(ProceduralEnglish(0).documents("train"), count))


def write_tokenizer(folder: Path, **tokens: Any) -> Any:
    """A byte-level tokenizer of 400 ids as transformers reads it; its start token is the end-of-text token."""
    from transformers import PreTrainedTokenizerFast

    train_tokenizer(texts(), 400, folder / "tokenizer.json")
    made = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>", bos_token="<|endoftext|>", **tokens
    )
    made.save_pretrained(folder)
    return made


def write_model(folder: Path, kind: str, *, seed: int = 0, **tokens: Any) -> Path:
    """A causal model of a kind and its tokenizer, saved with safetensors."""
    import transformers

    tokenizer = write_tokenizer(folder, **tokens)
    common = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    config = {
        "gpt2": lambda: transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_positions=MAX_LENGTH["gpt2"], **common
        ),
        "llama": lambda: transformers.LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_LENGTH["llama"],
            **common,
        ),
        "bloom": lambda: transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **common),
    }[kind]()
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    return folder


def prompts(count: int = 9) -> list[str]:
    """Prompts of clearly different lengths."""
    return [text[: 7 + 9 * number] for number, text in enumerate(texts(count))]
