"""How well a language model knows a text: bits per byte, comparable across vocabularies.

The only part of clpstream that needs torch and transformers: the extra `score`.
"""

from clpstream.scoring.documents import read_documents
from clpstream.scoring.intervals import Interval
from clpstream.scoring.sampling import sample_documents
from clpstream.scoring.score import Difference, Score, difference, score

__all__ = ["Difference", "Interval", "Score", "difference", "read_documents", "sample_documents", "score"]
