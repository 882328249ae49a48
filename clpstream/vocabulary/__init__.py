"""Tokenizer files -> what each token stands for, and what two vocabularies share."""

from clpstream.vocabulary.overlap import Match, Overlap, match
from clpstream.vocabulary.tokenizer import ROLES, Vocabulary, read_vocabulary

__all__ = ["ROLES", "Match", "Overlap", "Vocabulary", "match", "read_vocabulary"]
