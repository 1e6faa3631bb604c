"""Accuracy, cross-lingual consistency and AC3 from prediction files: reads files, writes files, loads neither torch nor a model."""

from megalign.crossin.scoring.answers import INVALID, Answers
from megalign.crossin.scoring.bootstrap import Bootstrap, compare, interval_rows
from megalign.crossin.scoring.match import Matcher, matcher
from megalign.crossin.scoring.read import read_file
from megalign.crossin.scoring.run import Result, ScoreOptions, score_files, score_row
from megalign.crossin.scoring.scores import Scores, expected_released, score

__all__ = [
    "INVALID",
    "Answers",
    "Bootstrap",
    "Matcher",
    "Result",
    "ScoreOptions",
    "Scores",
    "compare",
    "expected_released",
    "interval_rows",
    "matcher",
    "read_file",
    "score",
    "score_files",
    "score_row",
]
