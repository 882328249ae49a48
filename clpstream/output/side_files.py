"""Which files go along with the shards: the target's tokenizer, the source's code and licence."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from clpstream.vocabulary import VOCABULARY_FILES

TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "source.spm",
    "target.spm",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.*",
    "additional_chat_templates/*",
    "tokenization_*.py",
)
"""Taken from the target tokenizer's directory byte for byte; the source's own are left behind."""

SOURCE_FILES = (
    "*.py",
    "LICENSE*",
    "LICENCE*",
    "COPYING*",
    "NOTICE*",
    "*USE_POLICY*",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""Taken from the source: custom code, licences, what prepares images and sound."""

REWRITTEN = (
    "config.json",
    "generation_config.json",
    "clpstream.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
"""Files that the conversion itself writes."""


def side_files(source: Path, tokenizer: Path) -> dict[str, Path]:
    """Relative name in the target -> the file that is copied there."""
    found = {
        name: source / name
        for name in _files(source)
        if _matches(name, SOURCE_FILES) and not _matches(name, TOKENIZER_FILES)
    }
    found |= {
        name: tokenizer / name for name in _files(tokenizer) if _matches(name, TOKENIZER_FILES)
    }
    return dict(sorted(found.items()))


def left_behind(source: Path, taken: Mapping[str, Path], shards: Collection[str]) -> list[str]:
    """The source's files and directories that have no place in the target, shards aside."""
    files = [
        name
        for name in _files(source)
        if name not in taken and name not in shards and not _matches(name, REWRITTEN)
    ]
    inside = {name.partition("/")[0] for name in (*taken, *files) if "/" in name}
    folders = {path.name for path in source.iterdir() if path.is_dir()} - inside
    return sorted([*files, *(f"{name}/" for name in folders)])


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Those of a model's files that match; of directories in it, only chat templates count."""
    folders = "additional_chat_templates"
    return [
        name
        for name in names
        if name.rpartition("/")[0] in ("", folders) and _matches(name, patterns)
    ]


def _files(directory: Path) -> list[str]:
    inside = [*directory.glob("*"), *directory.glob("additional_chat_templates/*")]
    return sorted(str(path.relative_to(directory)) for path in inside if path.is_file())


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name.upper(), pattern.upper()) for pattern in patterns)
