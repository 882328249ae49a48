"""Conversions whose rows are told in a line of numpy, for tests of everything but the rows.

Shared tokens are copied, missing ones are means of their nearest neighbours.
"""

from __future__ import annotations

from typing import Any

import clpstream
from clpstream.conversion import Conversion

PLAIN = {"method": "knn", "shared": "copy"}


def convert(*places: Any, **arguments: Any) -> Conversion:
    """As `clpstream.convert`, but by knn and with copies, if nothing else is asked for."""
    return clpstream.convert(*places, **{**PLAIN, **arguments})
