"""A tiny M2M-100 with random weights and a tokenizer of whole words, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = ["the", "frog", "lives", "near", "water", "of", "a", "pond", "sky", "is", "blue"]


def save_encoder_decoder(folder: Path) -> tuple[Any, Any]:
    """The model and its tokenizer, saved in `folder`."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "__en__", "__es__", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["__en__", "__es__"], model_max_length=8,
    )  # fmt: skip
    made.save_pretrained(folder)
    torch.manual_seed(2)  # with this seed some of the beams end
    config = transformers.M2M100Config(
        vocab_size=len(pieces), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    model = transformers.M2M100ForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    return model, made
