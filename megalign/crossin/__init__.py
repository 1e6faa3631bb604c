"""CrossIn: cross-lingual instruction data, LoRA tuning, and consistency scores (Lin et al. 2024, arXiv:2404.11932).

`crossin.data` builds instruction mixes, `crossin.tuning` tunes models on them (the only part that loads torch), `crossin.questions`
answers questions with a model, and `crossin.scoring` scores the answers.
"""
