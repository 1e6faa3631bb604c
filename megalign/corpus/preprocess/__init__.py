"""Preprocessing: text files into a token store, in parallel, resumable, independent of the number of workers."""

from megalign.corpus.preprocess.parallel import Workers, open_workers
from megalign.corpus.preprocess.run import Progress, run
from megalign.corpus.preprocess.settings import LanguageBudget, PreprocessSettings, parse_languages

__all__ = ["LanguageBudget", "PreprocessSettings", "Progress", "Workers", "open_workers", "parse_languages", "run"]
