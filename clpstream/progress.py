"""How a conversion says how far it is. The library is silent; the command line draws bars."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Update = Callable[[int], None]


class Progress:
    """Silent progress. A subclass that overrides `task` shows it.

    bars: whether it draws on a terminal, so that libraries with bars of their own may as well.
    """

    bars = False

    @contextlib.contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Update]:
        """One stage: `total` units ("B" for bytes) are reported by calls of the function given."""
        yield lambda done: None
