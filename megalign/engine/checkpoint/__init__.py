"""Checkpoints one can trust: Megatron's torch_dist shards and a state.json, published whole or not at all."""

from megalign.engine.checkpoint.folder import MARKER, latest, newest, path_of, pointed_name, read_marker
from megalign.engine.checkpoint.loading import load, settle
from megalign.engine.checkpoint.saving import Saver, save
from megalign.engine.checkpoint.weights_only import load_weights, read_weights, weights_identity

__all__ = [
    "MARKER",
    "Saver",
    "latest",
    "load",
    "load_weights",
    "newest",
    "path_of",
    "pointed_name",
    "read_marker",
    "read_weights",
    "save",
    "settle",
    "weights_identity",
]
