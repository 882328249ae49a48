"""The built-in pair: a small English model and a smaller German helper, really trained.

What they are and how they were trained is in models/README.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from clpstream.conversion import Conversion, convert
from clpstream.errors import OutputError
from clpstream.inputs import read_json_if_there
from clpstream.output.report import REPORT_FILE

MODELS = Path(__file__).parent / "models"
SOURCE, HELPER = MODELS / "source-en", MODELS / "helper-de"

_SENTENCE = "Wählen Sie im Menü die Einstellungen, um das Fenster und die Schriftgröße zu ändern."


def run_demo(output: str | Path, **options: Any) -> Conversion:
    """Convert the built-in pair; options as for `convert`.

    An earlier demo in `output` is replaced, anything else there is an error as for `convert`.
    """
    earlier = _is_demo(Path(output))
    if os.path.lexists(output) and not earlier:
        raise OutputError(f"{output}: it exists and is no earlier demo; choose another output")
    return convert(SOURCE, HELPER, output, overwrite=earlier, **options)


def compare_tokenizers(output: Path) -> str:
    """A German sentence, as the source's tokenizer and the target's split it."""
    from tokenizers import Tokenizer

    lines = [f"sentence  {_SENTENCE}"]
    for name, directory in (("source", SOURCE), ("target", output)):
        tokens = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(_SENTENCE).tokens
        lines.append(f"          {name}: {len(tokens)} tokens: {' '.join(tokens)}")
    return "\n".join(lines)


def _is_demo(output: Path) -> bool:
    report = read_json_if_there(output / REPORT_FILE)
    inputs = [report.get(key) for key in ("source", "tokenizer")]
    names = [entry.get("name") for entry in inputs if isinstance(entry, dict)]
    return names == [SOURCE.name, HELPER.name]
