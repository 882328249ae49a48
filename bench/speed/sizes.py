"""Numbers of bytes on a command line."""

from __future__ import annotations

import argparse
import re


def size(text: str) -> int:
    """300M is 300 million, 300Mi is 300 * 2**20."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(i?)B?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text}: not a size such as 300M or 2.5G")
    power = " KMGT".index(found[2] or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)
