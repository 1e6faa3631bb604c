"""Checkpoints one can trust: Megatron's torch_dist shards and a state.json, published whole or not at all."""

from megalign.engine.checkpoint.folder import MARKER, latest, path_of, pointed_name, read_marker
from megalign.engine.checkpoint.loading import load, settle
from megalign.engine.checkpoint.saving import Saver, save

__all__ = ["MARKER", "Saver", "latest", "load", "path_of", "pointed_name", "read_marker", "save", "settle"]
