"""What the texts of a study say beside their own: facts, chatter about their entities, sentences of language inference."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from megalign.config import StudyConfig
from megalign.corpus.entailment import make_pairs, weave_sentences
from megalign.corpus.facts import CHATTER, FactSet, make_facts, weave_chatter, weave_facts
from megalign.corpus.inference_files import write_pairs
from megalign.corpus.knowledge import content
from megalign.corpus.knowledge.export import statements
from megalign.corpus.knowledge.facts import Knowledge, load_facts
from megalign.corpus.knowledge.periods import make_periods
from megalign.corpus.knowledge.wikidata import make_knowledge


class Said:
    """Facts and sentences of a seed, made by `make` and read back by `load`.

    Attributes:
        facts: stated all through the source language's text; None: there are none.
        periods: stated in periods of pretraining, not in the text; None: there are none.
    """

    def __init__(
        self, study: StudyConfig, seed: int, facts: FactSet | Knowledge | None, periods: Knowledge | None
    ) -> None:
        self.study, self.seed, self.facts, self.periods = study, seed, facts, periods

    @classmethod
    def make(cls, study: StudyConfig, seed: int, folder: Path) -> Said:
        """Make the facts of a seed and the pairs of language inference, in `folder`."""
        corpus = study.corpus
        facts: FactSet | Knowledge | None = None
        if study.facts is not None and study.facts.kind == "invented":
            facts = make_facts(seed, study.facts.num_relations, study.facts.objects_per_relation)
        elif study.facts is not None:
            facts = make_knowledge(
                seed,
                [corpus.source_language, *corpus.target_languages],
                relations=list(content.templates())[: study.facts.num_relations],
                objects_per_relation=study.facts.objects_per_relation,
                stated_in=[corpus.source_language],
                times=study.facts.repetitions,
            )
        if facts is not None:
            facts.save(folder / "facts.json")
        periods = None
        if study.dynamics is not None:
            dynamics = study.dynamics
            periods = make_periods(
                seed,
                [corpus.source_language, *corpus.target_languages],
                clone_of={corpus.clone_language: corpus.source_language} if corpus.clone else None,
                num_periods=study.train.steps // dynamics.period_steps,
                period_steps=dynamics.period_steps,
                frequencies=dynamics.frequencies,
                facts_per_cell=dynamics.facts_per_cell,
                objects_per_relation=dynamics.objects_per_relation,
            )
            periods.save(folder / "periods.json")
        if study.nli is not None and study.nli.kind == "generated":
            train, test = make_pairs(seed, study.nli.num_train, study.nli.num_test)
            write_pairs(folder / "nli" / "train.jsonl", train, corpus.source_language)
            write_pairs(folder / "nli" / "test.jsonl", test, corpus.source_language)
        return cls(study, seed, facts, periods)

    @classmethod
    def load(cls, study: StudyConfig, seed: int, folder: Path) -> Said:
        """Read what `make` wrote."""
        facts = load_facts(folder / "facts.json") if study.facts is not None else None
        return cls(study, seed, facts, Knowledge.load(folder / "periods.json") if study.dynamics else None)

    def facts_in(self, language: str) -> FactSet | None:
        """The facts as a language says them; clones are said in their originals' words."""
        if isinstance(self.facts, Knowledge):
            return self.facts.in_language(language, self.facts.select(self.study.corpus.source_language))
        return self.facts

    def weave(self, documents: Iterator[str], language: str, role: str, num_documents: int) -> Iterator[str]:
        """Documents with all that is said in a language.

        Args:
            documents: ordinary documents; the first `num_documents` are used.
            language: not a clone.
            role: of the documents, see `study.data.Texts`; facts are stated in the "train" texts of the source language.
            num_documents: as above.
        """
        stream: Iterator[str] = islice(documents, num_documents)
        nli, settings, facts = self.study.nli, self.study.facts, self.facts_in(language)
        if nli is not None and nli.kind == "generated":
            stream = weave_sentences(stream, share=nli.sentence_share, seed=self.seed, stream=role)
        if facts is None or settings is None:
            return stream
        templates = content.chatter(language) if isinstance(self.facts, Knowledge) else CHATTER
        stream = weave_chatter(stream, facts, share=settings.chatter_share, seed=self.seed, templates=templates)
        if role != "train" or language != self.study.corpus.source_language:
            return stream
        repetitions = settings.repetitions
        return weave_facts(stream, facts, repetitions=repetitions, num_documents=num_documents, seed=self.seed)

    def period_statements(self, language: str) -> Iterator[str]:
        """All that periods state in a language, as often as they do: words that the text itself does not have."""
        for period in range(self.periods.num_periods if self.periods else 0):
            assert self.periods is not None
            facts = self.periods.select(language, period=period)
            yield from statements(self.periods, facts, language, self.seed, period)
