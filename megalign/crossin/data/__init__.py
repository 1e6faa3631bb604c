"""Cross-lingual instruction data: sources, quality gate, mixes, translation. Loads neither torch nor a model."""
