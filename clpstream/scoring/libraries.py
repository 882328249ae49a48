"""torch and transformers: imported when a model is scored, and kept from printing."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from clpstream.errors import ScoringError


def import_torch() -> Any:
    """The module. Raises ScoringError that says how to install it."""
    return _import("torch")


def import_transformers() -> Any:
    """The module. Raises ScoringError that says how to install it."""
    import_torch()  # or transformers says at length that it is not there
    return _import("transformers")


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ScoringError(
            f"scoring needs torch and transformers, and {name} can't be imported ({error}); run "
            "pip install 'clpstream[score]'"
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and warnings: what matters is an error or a warning of ours."""
    logging = import_transformers().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def reason(error: BaseException) -> str:
    """The first line of what a library says."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
