"""How well a language model knows a text: bits per byte, comparable across vocabularies.

The only part of clpstream that needs torch and transformers: the extra `score`.
"""

from clpstream.scoring.documents import read_documents
from clpstream.scoring.intervals import Interval
from clpstream.scoring.sampling import helper_of, sample_documents
from clpstream.scoring.scores import Difference, Score, score, score_difference
from clpstream.scoring.table import table

__all__ = [
    "Difference",
    "Interval",
    "Score",
    "helper_of",
    "read_documents",
    "sample_documents",
    "score",
    "score_difference",
    "table",
]
