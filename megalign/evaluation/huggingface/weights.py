"""The tensors of a model of ours as those of a Hugging Face model, and back. Nothing is computed: numbers only move.

Megatron keeps queries, keys and values of a group of heads together: rows of `linear_qkv` are, group by group, the group's
queries, its key, its value. GPT-NeoX does the same with groups of one head; GPT-2 and Llama have all queries first.
`linear_fc1` of SwiGLU is the gate's rows, then the others'. Both sides rotate halves of a head, not neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from megalign.config.sections import ModelConfig
from megalign.errors import DataError
from megalign.evaluation.huggingface.architectures import Architecture, num_groups

Tensors = dict[str, torch.Tensor]
_Split = Callable[[torch.Tensor], list[torch.Tensor]]
_Merge = Callable[[list[torch.Tensor]], torch.Tensor]
EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"


@dataclass(frozen=True)
class Rule:
    """One tensor of ours and what it is made of.

    Attributes:
        key: our name.
        names: theirs; `{layer}` is the number of the layer, our tensor is then one of the stack.
        split, merge: ours -> theirs, and back.
    """

    key: str
    names: tuple[str, ...]
    split: _Split
    merge: _Merge

    @property
    def stacked(self) -> bool:
        """Whether there is one of each layer."""
        return "{layer}" in self.names[0]


def _plain(key: str, name: str) -> Rule:
    return Rule(key, (name,), lambda whole: [whole], lambda parts: parts[0])


def _transposed(key: str, name: str) -> Rule:
    """GPT-2's Conv1D: [inputs, outputs]."""
    return Rule(key, (name,), lambda whole: [whole.T], lambda parts: parts[0].T)


def _gate_and_up(key: str, *names: str) -> Rule:
    return Rule(key, names, lambda whole: list(whole.chunk(2)), torch.cat)


class _Heads:
    """Order of the rows of the projection to queries, keys and values."""

    def __init__(self, model: ModelConfig) -> None:
        self.groups = num_groups(model)
        self.queries = model.num_attention_heads // self.groups
        self.size = model.hidden_size // model.num_attention_heads

    def apart(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """[groups x (queries + 2) x size, ...] -> queries, keys, values, each [heads x size, ...]."""
        grouped = rows.reshape(self.groups, self.queries + 2, self.size, *rows.shape[1:])
        parts = grouped.split((self.queries, 1, 1), dim=1)
        return [part.reshape(-1, *rows.shape[1:]) for part in parts]

    def together(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """The inverse of `apart`."""
        grouped = [part.reshape(self.groups, -1, self.size, *part.shape[1:]) for part in parts]
        return torch.cat(grouped, dim=1).reshape(-1, *parts[0].shape[1:])


_ATTENTION, _MLP = "decoder.layers.self_attention.", "decoder.layers.mlp."


def _both(make: Callable[[str, str], Rule], key: str, name: str) -> Iterator[Rule]:
    """A rule for the matrix, a plain one for its bias."""
    yield make(f"{key}weight", f"{name}weight")
    yield _plain(f"{key}bias", f"{name}bias")


def _gpt2(model: ModelConfig) -> Iterator[Rule]:
    heads, layer = _Heads(model), "transformer.h.{layer}."
    yield _plain(EMBEDDING, "transformer.wte.weight")
    yield _plain("embedding.position_embeddings.weight", "transformer.wpe.weight")
    yield from _both(_plain, f"{_ATTENTION}linear_qkv.layer_norm_", f"{layer}ln_1.")
    yield Rule(
        f"{_ATTENTION}linear_qkv.weight",
        (f"{layer}attn.c_attn.weight",),
        lambda whole: [torch.cat(heads.apart(whole)).T],
        lambda parts: heads.together(list(parts[0].T.chunk(3))),
    )
    yield Rule(
        f"{_ATTENTION}linear_qkv.bias",
        (f"{layer}attn.c_attn.bias",),
        lambda whole: [torch.cat(heads.apart(whole))],
        lambda parts: heads.together(list(parts[0].chunk(3))),
    )
    yield from _both(_transposed, f"{_ATTENTION}linear_proj.", f"{layer}attn.c_proj.")
    yield from _both(_plain, f"{_MLP}linear_fc1.layer_norm_", f"{layer}ln_2.")
    yield from _both(_transposed, f"{_MLP}linear_fc1.", f"{layer}mlp.c_fc.")
    yield from _both(_transposed, f"{_MLP}linear_fc2.", f"{layer}mlp.c_proj.")
    yield from _both(_plain, "decoder.final_layernorm.", "transformer.ln_f.")


def _neox(model: ModelConfig) -> Iterator[Rule]:
    layer = "gpt_neox.layers.{layer}."
    yield _plain(EMBEDDING, "gpt_neox.embed_in.weight")
    yield from _both(_plain, f"{_ATTENTION}linear_qkv.layer_norm_", f"{layer}input_layernorm.")
    yield from _both(_plain, f"{_ATTENTION}linear_qkv.", f"{layer}attention.query_key_value.")
    yield from _both(_plain, f"{_ATTENTION}linear_proj.", f"{layer}attention.dense.")
    yield from _both(_plain, f"{_MLP}linear_fc1.layer_norm_", f"{layer}post_attention_layernorm.")
    yield from _both(_plain, f"{_MLP}linear_fc1.", f"{layer}mlp.dense_h_to_4h.")
    yield from _both(_plain, f"{_MLP}linear_fc2.", f"{layer}mlp.dense_4h_to_h.")
    yield from _both(_plain, "decoder.final_layernorm.", "gpt_neox.final_layer_norm.")


def _llama(model: ModelConfig) -> Iterator[Rule]:
    heads, layer = _Heads(model), "model.layers.{layer}."
    yield _plain(EMBEDDING, "model.embed_tokens.weight")
    yield _plain(f"{_ATTENTION}linear_qkv.layer_norm_weight", f"{layer}input_layernorm.weight")
    names = tuple(f"{layer}self_attn.{part}_proj.weight" for part in "qkv")
    yield Rule(f"{_ATTENTION}linear_qkv.weight", names, heads.apart, heads.together)
    yield _plain(f"{_ATTENTION}linear_proj.weight", f"{layer}self_attn.o_proj.weight")
    yield _plain(f"{_MLP}linear_fc1.layer_norm_weight", f"{layer}post_attention_layernorm.weight")
    yield _gate_and_up(f"{_MLP}linear_fc1.weight", f"{layer}mlp.gate_proj.weight", f"{layer}mlp.up_proj.weight")
    yield _plain(f"{_MLP}linear_fc2.weight", f"{layer}mlp.down_proj.weight")
    yield _plain("decoder.final_layernorm.weight", "model.norm.weight")


def rules(architecture: Architecture, model: ModelConfig, output_name: str) -> list[Rule]:
    """A rule for every tensor of the model; `output_name` is theirs for the output rows, where they are not tied."""
    made = {"gpt2": _gpt2, "gpt_neox": _neox, "llama": _llama}[architecture.model_type](model)
    return [*made, *([] if model.tied_embeddings else [_plain(OUTPUT, output_name)])]


def to_huggingface(
    made: list[Rule], model: ModelConfig, weights: Mapping[str, torch.Tensor], vocab_size: int
) -> Tensors:
    """Their tensors, the vocabulary without its padding.

    Raises:
        DataError: tensors are missing or left over.
    """
    _same_names({rule.key for rule in made}, weights, "The checkpoint")
    result: Tensors = {}
    for rule in made:
        whole = weights[rule.key]
        if rule.key in (EMBEDDING, OUTPUT):
            whole = whole[:vocab_size]
        for layer, tensor in enumerate(whole if rule.stacked else [whole]):
            for name, part in zip(rule.names, rule.split(tensor), strict=True):
                result[name.format(layer=layer)] = part.contiguous().clone()
    return result


def from_huggingface(made: list[Rule], model: ModelConfig, theirs: Mapping[str, torch.Tensor]) -> Tensors:
    """Our tensors, layers stacked, with the rows of the vocabulary that theirs has.

    Raises:
        DataError: tensors are missing or left over.
    """
    layers = range(model.num_layers)
    names = {name.format(layer=n) for rule in made for name in rule.names for n in (layers if rule.stacked else [0])}
    _same_names(names, theirs, "The Hugging Face model")
    result: Tensors = {}
    for rule in made:
        parts = [
            rule.merge([theirs[name.format(layer=layer)] for name in rule.names])
            for layer in (layers if rule.stacked else [0])
        ]
        result[rule.key] = torch.stack(parts) if rule.stacked else parts[0]
    return result


def _same_names(wanted: set[str], found: Mapping[str, torch.Tensor], whose: str) -> None:
    missing, more = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
    if missing or more:
        told = [
            f"{len(names)} {what} ({', '.join(names[:3])})"
            for names, what in ((missing, "missing"), (more, "left over"))
            if names
        ]
        raise DataError(
            f"{whose} has other tensors than its configuration says: {', '.join(told)}.",
            "Something of it would be lost.",
            "Use a model and a configuration that belong together.",
        )
