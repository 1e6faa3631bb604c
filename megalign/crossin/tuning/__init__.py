"""LoRA tuning of causal language models on instruction data, with transformers, peft and accelerate. The only part that loads torch."""
