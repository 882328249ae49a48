"""`subword`: rows made from those of the source tokens that a token splits into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from clpstream.transfer.mean import Mean


@dataclass(frozen=True)
class Subword(Mean):
    """Each missing token from its pieces in the source's tokenizer. No helper is read.

    Fast Vocabulary Transfer (Gee et al. 2022, arXiv 2402.09977): the mean of the pieces' rows. They
    are found with the tokens, before any method runs (`clpstream.origins`); what is left for this
    one, tokens that can't be split, gets the mean of the anchors.
    """

    name: ClassVar[str] = "subword"
