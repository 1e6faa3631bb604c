"""Teach a model invented knowledge, ask it in two languages, score what was conducted: the part of CLiKA that computes.

What is invented, checked and scored is in `megalign.clika`, which needs no torch. This room fine-tunes: LoRA or all weights of a
Hugging Face model (transformers, peft), all weights of a run of ours (the engine, with its optimizer and checkpoints).
"""

from megalign.conductivity.measure import MeasureSettings, measure
from megalign.conductivity.settings import TuneSettings

__all__ = ["MeasureSettings", "TuneSettings", "measure"]
