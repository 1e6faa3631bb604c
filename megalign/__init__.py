"""megalign: pretraining of multilingual language models whose languages are aligned before they are learned."""

__version__ = "0.1.0"
