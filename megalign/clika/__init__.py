"""CLiKA: how well a model's knowledge agrees between languages, scored from its responses (Gao et al. 2024, arXiv:2404.04659).

Performance (re-scaled accuracy) and consistency with English, with bootstrap intervals and paired comparisons, and checks of the
data before scoring. Reads files, writes files; loads neither torch nor a model.
"""

from megalign.clika.bootstrap import compare_models, interval_rows
from megalign.clika.checks import check_answers
from megalign.clika.datasets import Comparison, DataSet, Protocol, load_protocol
from megalign.clika.findings import Finding
from megalign.clika.read import read_answers
from megalign.clika.rows import AnswerSet
from megalign.clika.run import ScoreOptions, score
from megalign.clika.scores import METRICS, score_rows

__all__ = [
    "METRICS",
    "AnswerSet",
    "Comparison",
    "DataSet",
    "Finding",
    "Protocol",
    "ScoreOptions",
    "check_answers",
    "compare_models",
    "interval_rows",
    "load_protocol",
    "read_answers",
    "score",
    "score_rows",
]
