"""Small configurations, as the mappings a YAML file would hold."""

from __future__ import annotations

from typing import Any


def run_content() -> dict[str, Any]:
    """A run of English and its clone with every section a method needs."""
    return {
        "name": "r",
        "folder": "runs/r",
        "model": {"preset": "tiny"},
        "data": {
            "store": "store",
            "table": "table.parquet",
            "sources": [{"language": "en", "weight": 20.0}, {"language": "en-clone", "weight": 1.0}],
        },
        "train": {"steps": 10, "global_batch_size": 8, "micro_batch_size": 4, "optimizer": {"lr": 1e-3}},
        "inject": {"steps": 5},
        "codeswitch": {"ratio": 0.05},
    }


def study_content() -> dict[str, Any]:
    """A study of English and its clone with facts."""
    return {
        "name": "s",
        "seeds": [0, 1],
        "methods": ["joint", {"method": "prealign", "name": "ours", "set": {"inject.steps": 7}}],
        "corpus": {
            "kind": "procedural",
            "clone": True,
            "source_tokens": 1000,
            "target_tokens": 50,
            "validation_tokens": 100,
            "vocab_size": 300,
        },
        "facts": {},
        "table": {"kind": "golden"},
        "model": "tiny",
        "train": {"steps": 10, "global_batch_size": 8, "micro_batch_size": 4},
    }
