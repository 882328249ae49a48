"""Tokenizer files -> what each token stands for, and what two vocabularies share."""

from clpstream.vocabulary.classes import tokenizer_class
from clpstream.vocabulary.files import VOCABULARY_FILES
from clpstream.vocabulary.languages import of_another_language
from clpstream.vocabulary.overlap import MISSING, Match, Overlap, match
from clpstream.vocabulary.split import Splitter, load_tokenizer
from clpstream.vocabulary.tokenizer import ROLES, read_vocabulary
from clpstream.vocabulary.tokens import Vocabulary

__all__ = [
    "MISSING",
    "ROLES",
    "VOCABULARY_FILES",
    "Match",
    "Overlap",
    "Splitter",
    "Vocabulary",
    "load_tokenizer",
    "match",
    "of_another_language",
    "read_vocabulary",
    "tokenizer_class",
]
