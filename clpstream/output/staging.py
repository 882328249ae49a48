"""All or nothing: the target is written in a hidden directory beside its place, then renamed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from clpstream.checkpoint import WEIGHTS
from clpstream.errors import OutputError
from clpstream.output.report import REPORT_FILE

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_OF_WEIGHTS = (*(name for pair in WEIGHTS for name in pair), "*.safetensors", "*-of-*.bin")
"""Files of which one tells, beside a config.json, that a directory is a model."""
_OF_THE_HUB = ".cache"
"""What a download from the Hub leaves in its directory; it can be had again."""
_ASIDE = ".replaced"


def check_place(output: Path, inputs: list[Path], overwrite: bool) -> None:
    """Raise OutputError if the target can't go to `output`; nothing is written or created."""
    if os.path.lexists(output):
        if output.is_symlink() or not output.is_dir():
            raise OutputError(f"{output}: it exists and is not a directory; choose another output")
        if os.path.ismount(output):
            raise OutputError(
                f"{output}: it is a mount point, which can't be replaced; give a directory inside "
                "it"
            )
        _check_absent(output, overwrite)
        if not os.access(output, os.W_OK | os.X_OK) and output.stat().st_uid != os.geteuid():
            raise OutputError(
                f"{output}: it is another user's, who alone can remove it; choose another output"
            )
    place = Path(os.path.realpath(output))
    for path in (path.resolve() for path in inputs):
        if place == path or path in place.parents:
            raise OutputError(
                f"{output}: the output lies inside the input {path}; choose another output"
            )
        linked = (file.resolve() for file in path.iterdir())
        if any(place in file.parents for file in (path, *linked)):
            raise OutputError(
                f"{output}: the output would replace files of the input {path}; choose another "
                "output"
            )
    here = Path.cwd()
    if os.path.lexists(output) and (here == place or place in here.parents):
        raise OutputError(f"{output}: the current directory lies in it; choose another output")
    parent = existing_parent(output)
    if not parent.is_dir():
        raise OutputError(f"{output}: {parent} is not a directory; choose another output")
    needed = {"write to": os.W_OK, "enter": os.X_OK}
    if parent == output.absolute().parent:  # else it is one that is yet to be made
        needed["list"] = os.R_OK
    lacking = [what for what, mode in needed.items() if not os.access(parent, mode)]
    if lacking:
        raise OutputError(
            f"{output}: no permission to {' or '.join(lacking)} {parent}; choose another output"
        )


def check_replaceable(output: Path) -> None:
    """Raise OutputError for a directory that --overwrite is not for: files that are no model, or a
    model with a hidden directory, such as .git, whose content can't be got back."""
    paths = sorted(output.iterdir()) if output.exists() else []
    names = [path.name for path in paths]
    hidden = [
        path.name
        for path in paths
        if path.name == ".git"  # a file in a worktree
        or (path.name.startswith(".") and path.name != _OF_THE_HUB and path.is_dir())
    ]
    if hidden:
        raise OutputError(
            f"{output}: it has {hidden[0]}, which may hold work that can't be got back; choose "
            "another output, or remove it yourself"
        )
    weights = any(fnmatch(name, kind) for name in names for kind in _OF_WEIGHTS)
    if names and REPORT_FILE not in names and not ("config.json" in names and weights):
        found = ", ".join(names[:3] + ["..."] * (len(names) > 3))
        raise OutputError(
            f"{output}: it exists and is no model (it has {found}, but no {REPORT_FILE}, and no "
            "config.json with weights); choose another output, or remove it yourself"
        )


def _check_absent(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise OutputError(
            f"{output}: it exists; choose another output, or replace it with --overwrite"
        )


def check_space(output: Path, needed: int, free: int) -> None:
    """Raise OutputError if `needed` bytes are more than are free on the file system."""
    if free < needed:
        raise OutputError(
            f"{output}: {needed:,} bytes are needed and {free:,} are free on its file system; make "
            "room, or choose another output"
        )


def free_bytes(output: Path) -> int:
    """Bytes free on the file system where `output` would go."""
    return shutil.disk_usage(existing_parent(output)).free


def existing_parent(path: Path) -> Path:
    """The nearest directory above `path` that exists."""
    return next(parent for parent in path.absolute().parents if os.path.lexists(parent))


@contextlib.contextmanager
def staged(output: Path, overwrite: bool) -> Iterator[Path]:
    """A directory to write the target into. It becomes `output` if the block ends well.

    If it does not, nothing stays. What a killed run left beside `output` is removed first: the
    directory of a run that is alive is locked, and is left alone.
    """
    output = output.absolute()
    made = _make_parents(output.parent)
    try:
        _remove_leftovers(output)
        _check_absent(output, overwrite)  # a leftover may have been put back there
        with _locked_directory(output) as stage:
            yield stage
            _sync(stage)
            _put_in_place(stage, output, overwrite)
    except BaseException:
        for directory in made:
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise


@contextlib.contextmanager
def _locked_directory(output: Path) -> Iterator[Path]:
    """A new one beside the output. What has its name at the end is removed: after an exchange, the
    directory that was replaced."""
    while True:
        stage, fd = output.with_name(f"{_prefix(output)}{secrets.token_hex(4)}"), -1
        try:  # from before it is there: a signal may come between any two steps
            stage.mkdir()
            fd = os.open(stage, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another run has taken it for a leftover and removes it
                continue
            except OSError:  # some network file systems have no locks
                pass
            if stage.exists():
                yield stage
                return
        finally:
            _remove(stage)
            if fd >= 0:
                os.close(fd)


def _remove(directory: Path) -> None:
    """Remove a directory, also if the first attempt is interrupted, or what is in it protected."""
    try:
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        if directory.exists():
            _make_writable(directory)
            shutil.rmtree(directory, ignore_errors=True)


def _make_writable(directory: Path) -> None:
    """Permit its owner to remove what is in a directory, and in those inside."""
    with contextlib.suppress(OSError):
        directory.chmod(stat.S_IRWXU)
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                _make_writable(path)


def _remove_leftovers(output: Path) -> None:
    ours = re.compile(re.escape(_prefix(output)) + f"[0-9a-f]{{8}}({re.escape(_ASIDE)})?")
    for leftover in output.parent.iterdir():
        if not ours.fullmatch(leftover.name):
            continue
        with contextlib.suppress(OSError):
            fd = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if leftover.suffix == _ASIDE and not output.exists():
                    leftover.rename(output)  # killed between the two renames of an exchange
                else:
                    _remove(leftover)
            finally:
                os.close(fd)


def _put_in_place(stage: Path, output: Path, overwrite: bool) -> None:
    try:
        if overwrite and output.exists():
            _exchange(stage, output)
        else:
            stage.rename(output)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise OutputError(
                f"{output}: it exists now, made by another run while this one worked; choose "
                "another output, or replace it with --overwrite"
            ) from None
        raise OutputError(
            f"{output}: can't be put in place: {error.strerror}; choose another output"
        ) from None
    _sync(output.parent)


def _exchange(stage: Path, output: Path) -> None:
    """Swap two directories in one step where the system can, else in two renames."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    old, new = os.fsencode(stage), os.fsencode(output)
    if renameat2 is not None and renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_EXCHANGE) == 0:
        return
    aside = stage.with_name(stage.name + _ASIDE)
    output.rename(aside)
    try:
        stage.rename(output)
    except BaseException:  # an interrupt too: the old output must not be lost
        aside.rename(output)
        raise
    aside.rename(stage)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
            raise
    finally:
        os.close(fd)


def _make_parents(directory: Path) -> list[Path]:
    """Create a directory with its parents; those that were created, the innermost first."""
    made = [d for d in (directory, *directory.parents) if not d.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    return made


def _prefix(output: Path) -> str:
    """Of the hidden directories that stand beside `output` while it is written."""
    name = os.fsencode(output.name)
    short = output.name if len(name) <= 200 else hashlib.sha256(name).hexdigest()
    return f".{short}.clpstream-"
