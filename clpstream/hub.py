"""Models on the Hugging Face Hub -> directories in its cache, with the files that are needed.

huggingface_hub does the fetching, so its cache, token, offline mode and endpoint variables are
obeyed as everywhere. It is imported only when there is something to fetch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clpstream.checkpoint import (
    WEIGHTS,
    Checkpoint,
    Shard,
    TensorSpan,
    helper_tables_names,
    input_embeddings_names,
    open_checkpoint,
    shard_names,
)
from clpstream.errors import CheckpointError
from clpstream.inputs import read_json, read_json_if_there
from clpstream.output.side_files import (
    SOURCE_FILES,
    TOKENIZER_FILES,
    matching,
)
from clpstream.progress import Progress
from clpstream.vocabulary import VOCABULARY_FILES

Part = Literal["source", "helper", "embeddings", "tokenizer"]

_SMALL_FILES = ("config.json", *TOKENIZER_FILES)
"""What is fetched besides the shards."""
_OF_A_SOURCE = ("generation_config.json", *SOURCE_FILES)
"""And of a source."""
_TABLES: dict[Part, Callable[[Iterable[str]], list[str]]] = {
    "helper": helper_tables_names,
    "embeddings": input_embeddings_names,
}
"""The tensors whose shards are fetched, where not all are."""

_ID = re.compile(
    r"(?!.*\.\.)(?P<name>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(@(?P<revision>\S+))?", re.ASCII
)
_NEITHER = (
    "no such directory, and not the id of a model on the Hub; give the directory of a Hugging Face "
    "model, or ORG/NAME or ORG/NAME@REVISION"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class _Model:
    """A model's name on the Hub, and the branch, tag or commit of it."""

    name: str
    revision: str | None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


@dataclass(frozen=True)
class _Snapshot:
    """A commit of a model: its directory in the cache, and the names of its files.

    online: whether the Hub can be reached; if not, the names may be those in the directory only.
    """

    model: _Model
    directory: Path
    names: list[str]
    online: bool


def local_directory(model: str | Path, part: Part, progress: Progress) -> Path:
    """The directory of a model: the one named if it exists, else a snapshot in the Hub's cache.

    A str that is no path of anything can be ORG/NAME (or NAME, for a few old models), and may end
    with @REVISION. Then the files that the model is needed for as `part` are fetched, unless they
    are in the cache. A Path is never an id.

    Raises CheckpointError if it is neither, or can't be fetched.
    """
    if isinstance(model, Path) or os.path.lexists(model):
        return Path(model)
    return _fetch(_parse(model), part, progress)


def open_headers(model: str | Path, progress: Progress) -> Checkpoint:
    """Like `open_checkpoint`; of a model on the Hub whose shards are not in the cache, only their
    headers are fetched, so that its tensors can't be read."""
    directory = local_directory(model, "tokenizer", progress)
    if isinstance(model, Path) or os.path.lexists(model):
        return open_checkpoint(directory)
    return open_checkpoint(directory) if _has_weights(directory) else _open_afar(model, directory)


def model_name(directory: Path) -> str:
    """What to call a model: ID@COMMIT if the directory is in the Hub's cache, else its name."""
    place, entry = directory.resolve(), cache_entry(directory)
    return place.name if entry == place else f"{entry.name[8:].replace('--', '/')}@{place.name}"


def cache_entry(directory: Path) -> Path:
    """All that the Hub's cache holds of the model whose snapshot `directory` is.

    A directory outside the cache is returned, resolved.
    """
    directory = directory.resolve()
    entry, snapshots = directory.parent.parent, directory.parent
    is_snapshot = (
        entry.name.startswith("models--")
        and snapshots.name == "snapshots"
        and _COMMIT.fullmatch(directory.name)
    )
    return entry if is_snapshot else directory


def in_cache(directory: Path) -> bool:
    """Whether a directory is a snapshot in the Hub's cache."""
    return cache_entry(directory) != directory.resolve()


def _parse(model: str) -> _Model:
    found = _ID.fullmatch(model)
    if found is None:
        raise CheckpointError(f"{model}: {_NEITHER}")
    return _Model(found["name"], found["revision"])


def _has_weights(directory: Path) -> bool:
    for single, index in WEIGHTS:
        if (directory / single).exists():
            return True
        if (directory / index).exists():
            names = shard_names(directory / index, read_json(directory / index))
            return all((directory / name).exists() for name in names)
    return False


def _open_afar(model: str, directory: Path) -> Checkpoint:
    """A checkpoint by the headers of its shards. Their `data_start` is 0: nothing can be read."""
    from huggingface_hub import HfApi, errors

    with _explaining(_parse(model)):
        try:
            name = _parse(model).name
            found = HfApi().get_safetensors_metadata(name, revision=directory.name)
        except errors.SafetensorsParsingError as error:
            raise CheckpointError(
                f"{model}: the header of one of its shards is damaged: {_reason(error)}; tell its "
                "authors"
            ) from None
        except errors.NotASafetensorsRepoError:
            raise CheckpointError(
                f"{model}: it has no {WEIGHTS[0][0]}, and the headers of other files can't be read "
                "from afar; download it first"
            ) from None
    shards = []
    for name, header in sorted(found.files_metadata.items()):
        path = directory / name
        spans = [
            TensorSpan(tensor, path, begin, end - begin, info.dtype, tuple(info.shape))
            for tensor, info in header.tensors.items()
            for begin, end in [info.data_offsets]
        ]
        size = max((span.offset + span.length for span in spans), default=0)
        shards.append(Shard(path, size, 0, tuple(spans), header.metadata))
    return Checkpoint(directory, read_json_if_there(directory / "config.json"), tuple(shards), None)


def _fetch(model: _Model, part: Part, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download

    with _explaining(model), _speaking(bars=False):
        # no files yet: this finds the commit, also in the cache if the Hub can't be reached
        folder = snapshot_download(model.name, revision=model.revision, allow_patterns=[])
    snapshot = _Snapshot(model, Path(folder), *_listing(model, Path(folder)))
    small = (*_SMALL_FILES, *_OF_A_SOURCE) if part == "source" else _SMALL_FILES
    wanted = matching(snapshot.names, small)
    if part != "tokenizer":
        wanted += _weights(snapshot, part)
    _download(snapshot, wanted, progress)
    return snapshot.directory


def _listing(model: _Model, directory: Path) -> tuple[list[str], bool]:
    """Names of the files of a snapshot, and whether the Hub gave them."""
    import huggingface_hub

    commit = directory.name
    with contextlib.suppress(*_failures()):
        found = huggingface_hub.HfApi().model_info(model.name, revision=commit).siblings or []
        return [file.rfilename for file in found], True
    cached_tree = getattr(huggingface_hub, "get_cached_repo_tree", None)  # new in 2026
    if cached_tree is not None:
        with contextlib.suppress(huggingface_hub.errors.CachedRepoTreeNotFoundError):
            return [file.path for file in cached_tree(model.name, revision=commit)], False
    there = [str(p.relative_to(directory)) for p in sorted(directory.rglob("*")) if p.is_file()]
    # what no model does without is taken to exist, so that its absence is noticed
    needed = (("config.json",), [name for pair in WEIGHTS for name in pair], VOCABULARY_FILES)
    return there + [group[0] for group in needed if not matching(there, group)], False


def _weights(snapshot: _Snapshot, part: Part) -> list[str]:
    """The files with the tensors that are needed; safetensors go first."""
    for single, index in WEIGHTS:
        if single in snapshot.names:
            return [single]
        if index in snapshot.names:
            _download(snapshot, [index], Progress())
            where = snapshot.directory / index
            return [index, *shard_names(where, read_json(where), _TABLES.get(part))]
    return []


def _download(snapshot: _Snapshot, names: list[str], progress: Progress) -> None:
    """Fetch those of the files that are not in the cache, one after the other: Ctrl-C works."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    model, directory = snapshot.model, snapshot.directory
    absent = [name for name in names if not (directory / name).is_file()]
    if not absent:
        return
    if not snapshot.online:
        raise _not_cached(snapshot, absent[0], None)
    shown = Progress() if progress.bars else progress  # huggingface_hub draws a bar for each file
    with (
        _explaining(model),
        _speaking(progress.bars),
        shown.task(f"fetching {model}", len(absent), "files" if absent[1:] else "file") as update,
    ):
        for name in absent:
            try:
                hf_hub_download(model.name, name, revision=directory.name)
            except LocalEntryNotFoundError as error:
                raise _not_cached(snapshot, name, error.__cause__) from None
            update(1)


def _not_cached(snapshot: _Snapshot, name: str, cause: BaseException | None) -> CheckpointError:
    where = f"{snapshot.model}: {name} is not in the cache ({snapshot.directory})"
    return CheckpointError(f"{where}, and {_offline(cause)}")


@contextlib.contextmanager
def _speaking(bars: bool) -> Iterator[None]:
    """Let huggingface_hub draw bars or not, and log no warnings: what matters is an error here."""
    from huggingface_hub import constants
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    verbosity = get_verbosity()
    decided = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None  # by the user, for all programs
    silenced = not (bars or decided or are_progress_bars_disabled())
    set_verbosity(logging.ERROR)
    if silenced:
        disable_progress_bars()
    try:
        yield
    finally:
        set_verbosity(verbosity)
        if silenced:
            enable_progress_bars()


@contextlib.contextmanager
def _explaining(model: _Model) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line that says what to do."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError:
        advice = (
            "access to it is restricted; accept its conditions at "
            f"{constants.ENDPOINT}/{model.name}, and log in with 'hf auth login' or set HF_TOKEN"
        )
    except errors.RepositoryNotFoundError:
        advice = (
            f"no such directory, and no such model on the Hub ({constants.ENDPOINT}); check the "
            "name, and for a private model log in with 'hf auth login' or set HF_TOKEN"
        )
    except errors.RevisionNotFoundError:
        advice = "the model has no such revision on the Hub; check the name after the @"
    except errors.LocalEntryNotFoundError as error:
        advice = f"no such directory, not in the Hub's cache, and {_offline(error.__cause__)}"
    except errors.HFValidationError:
        advice = _NEITHER
    except _failures() as error:
        advice = (
            f"can't be fetched from the Hub ({constants.ENDPOINT}): {_reason(error)}; check "
            "HF_ENDPOINT, HF_TOKEN and HF_HOME, or try again"
        )
    else:
        return
    raise CheckpointError(f"{model}: {advice}")


def _offline(cause: BaseException | None) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; download it first, or unset them"
    reason = "" if cause is None else f" ({_reason(cause)})"
    return (
        f"the Hub ({constants.ENDPOINT}) can't be reached{reason}; check the connection and "
        "HF_ENDPOINT, or give a directory"
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error).partition("\n")[0].rstrip(".")


def _failures() -> tuple[type[BaseException], ...]:
    """What a request can raise; it depends on the HTTP library of the huggingface_hub installed."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, *HfHubHTTPError.__bases__
