"""The model card of an exported model: what it is, where it comes from, how it was compared."""

from __future__ import annotations

from pathlib import Path

import jinja2

from megalign import __version__
from megalign.evaluation.huggingface.architectures import Architecture
from megalign.evaluation.huggingface.parity import Parity
from megalign.files import write_text
from megalign.training.initial import Weights


def write_card(
    folder: Path, found: Weights, architecture: Architecture, parity: Parity, *, dtype: str, num_parameters: int
) -> None:
    """Write README.md into an exported folder."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    # Markdown: nothing is escaped. Undefined names are mistakes.
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    vocabulary, config = found.vocabulary, found.config
    fingerprints = {"weights": found.identity, "tokenizer": vocabulary.tokenizer.fingerprint}
    if found.store is not None:
        fingerprints["token store"] = found.store.fingerprint
    text = environment.get_template("README.md.j2").render(
        name=config.name if config else found.checkpoint.parents[2].name,
        model_class=architecture.model_class,
        num_parameters=num_parameters,
        dtype=dtype,
        version=__version__,
        imported=config is None,
        step=found.state["step"],
        stage=found.checkpoint.parent.name,
        model=found.model,
        vocab_size=vocabulary.size,
        tokenizer_vocab_size=vocabulary.tokenizer.vocab_size,
        eos_token=vocabulary.tokenizer.eos_token,
        languages=vocabulary.languages,
        clone_of=vocabulary.clone_of,
        method=config.method if config else None,
        seed=config.seed if config else None,
        sources=config.data.all_sources if config else [],
        fingerprints=fingerprints,
        parity=parity,
    )
    write_text(folder / "README.md", text)
