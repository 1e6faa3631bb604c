"""Models of ours as Hugging Face folders, and Hugging Face models as weights that runs start from.

    exported = export_run(Path("runs/demo"), Path("runs/demo-hf"))        # Exported(architecture, max_difference, ...)
    imported = import_model("gpt2-folder", Path("runs/gpt2-start"))       # then: initial_weights: runs/gpt2-start

Both compare the logits of the two implementations on windows of tokens before anything stands under its name.
"""

from megalign.evaluation.huggingface.export import Exported, export_run
from megalign.evaluation.huggingface.importing import Imported, import_model

__all__ = ["Exported", "Imported", "export_run", "import_model"]
