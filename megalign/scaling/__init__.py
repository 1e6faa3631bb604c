"""Arithmetic of scale: parameters, FLOPs, memory and time of a model under a layout. No torch, no Megatron, no files of a run."""
