"""Languages and their scripts, and models that translate texts; shared by the alignment table and by CrossIn.

Only `megalign.translation.model` needs torch and transformers, and it imports them when a model is opened.
"""
