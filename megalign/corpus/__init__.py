"""Text and tokens: readers, tokenizer, word segmentation, the procedural corpus, facts, and the token store.

Nothing here imports torch or Megatron: preprocessing runs on machines that have neither.
"""
