"""A tiny Llama and its tokenizer, made on the spot: it has read the four languages, each by itself, and knows no facts of CTD.

python examples/crossin/make_model.py --out runs/crossin/model
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megalign.corpus.keyed_random import generator

HERE = Path(__file__).resolve().parent
LANGUAGES = ("en", "zh", "vi", "es")
END = "<|end|>"


def texts() -> list[str]:
    """Question and answer of every LUD row in every language."""
    rows = []
    for language in LANGUAGES:
        for line in (HERE / f"lud_{language}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.append("\n".join(filter(None, (row["instruction"], row["input"], row["output"]))))
    return rows


def make_tokenizer(rows: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, with the words of CTD too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*rows, (HERE / "ctd.jsonl").read_text(encoding="utf-8")], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = texts()
    tokenizer = make_tokenizer(rows, 1500)
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    encoded = [[*tokenizer(row)["input_ids"], tokenizer.eos_token_id] for row in rows]
    random = generator(args.seed, "make_model")
    loss = torch.tensor(float("nan"))
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / args.steps)
        chosen = [encoded[at] for at in random.integers(0, len(encoded), size=32)]
        width = max(map(len, chosen))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in chosen])
        seen = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in chosen])
        loss = model(input_ids=ids, attention_mask=seen, labels=ids.masked_fill(seen == 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"{sum(one.numel() for one in model.parameters())} parameters, last loss {loss:.3f}: {args.out}")


if __name__ == "__main__":
    main()
