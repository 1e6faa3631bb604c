"""Tiny models that are made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from crossin_samples import TASKS

CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
END = "<|end|>"


def write_tokenizer(folder: Path, chat: bool = False) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[END, "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([text for rows in TASKS.values() for row in rows for text in row], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    if chat:
        made.chat_template = CHAT
    made.save_pretrained(folder)
    return made


def write_model(folder: Path, kind: str = "llama", *, tied: bool = True, chat: bool = False) -> Path:
    """A causal model with random weights, saved with safetensors."""
    import torch
    import transformers

    tokenizer = write_tokenizer(folder, chat)
    common = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 0, "tie_word_embeddings": tied}
    configs = {
        "llama": lambda: transformers.LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=256, **common,
        ),
        "gpt2": lambda: transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_positions=256, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, **common
        ),
        "bloom": lambda: transformers.BloomConfig(hidden_size=32, n_layer=1, n_head=4, **common),
    }  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configs[kind]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.15)  # large enough for what is read to show in what is said
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models, read-only: llama (tied embeddings), untied (llama), chat (llama), gpt2, bloom."""
    root = tmp_path_factory.mktemp("tiny")
    return {
        "llama": write_model(root / "llama"),
        "untied": write_model(root / "untied", tied=False),
        "chat": write_model(root / "chat", chat=True),
        "gpt2": write_model(root / "gpt2", "gpt2"),
        "bloom": write_model(root / "bloom", "bloom"),
    }
