"""Measure conversions: time, CPU time and peak memory of whole processes, beside `cp -r`.

    python bench/speed/run.py --output results --sizes 300M 1G 3G --repeats 5

builds a workload for each size (the bytes of the source's layers), runs every command on it,
interleaved, the order turned by one from repeat to repeat, and prints a table of medians. Results
also go to results/results.json, results/report.md and, with matplotlib, results/report.png.
Commands whose program or module is not installed are left out.

    python bench/speed/run.py --output results --source DIR --helper DIR --only cp align

measures checkpoints that are there. Before every run the inputs are read (or, with --cold, dropped
from the page cache), and what earlier runs wrote is on disk; each output is deleted at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import report
from commands import HERE, Command, commands
from sizes import size

PACKAGES = ("clpstream", "numpy", "faiss-cpu", "torch", "transformers", "mergekit")
SETTINGS = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def main() -> None:
    args = parse_args()
    chosen = choose(commands(shlex.split(args.convert_option), args.tokensurgeon), args.only)
    args.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(), "settings": settings(args), "runs": []}
    for body in [None] if args.source else args.sizes:
        with workload(args, body) as (source, helper):
            for run in measurements(args, dict(chosen), source, helper):
                results["runs"].append({"body": body, "source_bytes": size_of(source), **run})
                path = args.output / report.RESULTS
                path.write_text(json.dumps(results, indent=1), "utf-8")
    print(report.write(args.output))


def choose(known: dict[str, Command], only: list[str] | None) -> dict[str, Command]:
    """The commands that were asked for and can be run."""
    unknown = set(only or []) - set(known)
    if unknown:
        raise SystemExit(f"no command {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = {name: known[name] for name in only or known}
    for name in [name for name, command in chosen.items() if command.missing]:
        print(f"{name}: left out, {chosen.pop(name).needs} is not installed", file=sys.stderr)
    return chosen


@contextlib.contextmanager
def workload(args: argparse.Namespace, body: str | None) -> Iterator[tuple[Path, Path]]:
    """The source and helper to measure; removed afterwards if they were built here."""
    if args.source:
        yield args.source, args.helper
        return
    with tempfile.TemporaryDirectory(dir=args.output) as directory:
        place = Path(directory) / "workload"
        line = [sys.executable, str(HERE / "workload.py"), str(place), "--body-bytes", body]
        subprocess.run([*line, *shlex.split(args.workload)], check=True)
        yield place / "source", place / "helper"


def measurements(
    args: argparse.Namespace, chosen: dict[str, Command], source: Path, helper: Path
) -> Iterator[dict[str, Any]]:
    """Run by run. A command that fails is not run again."""
    names = list(chosen)
    with tempfile.TemporaryDirectory(dir=args.output) as directory:
        output, log = Path(directory) / "target", Path(directory) / "log"
        for repeat in range(args.repeats):
            turn = repeat % max(1, len(names))
            for name in [*names[turn:], *names[:turn]]:
                (drop_from_cache if args.cold else read)([source, helper])
                line = chosen[name].line(source, helper, output)
                taken = launch(line, log, args.rlimit_data)
                if chosen[name].prints_seconds and not taken["code"]:
                    taken["wall"] = float(tail(log))
                if taken["code"]:
                    print(f"{name}: exit code {taken['code']}\n{tail(log)}", file=sys.stderr)
                    taken["error"] = tail(log).splitlines()[-1:]
                    del chosen[name]
                written = size_of(output) if output.exists() else 0
                shutil.rmtree(output, ignore_errors=True)
                print(f"{name}: {taken['wall']:.2f} s", file=sys.stderr, flush=True)
                yield {"command": name, "repeat": repeat, "written": written, **taken}
            names = [name for name in names if name in chosen]


def launch(line: list[str], log: Path, limit: int) -> dict[str, Any]:
    """What the command took, by launch.py; nothing is left to be written to disk before it."""
    os.sync()
    launcher = [sys.executable, "-I", "-S", str(HERE / "launch.py"), str(log), str(limit)]
    environment = {**SETTINGS, **os.environ}
    done = subprocess.run([*launcher, *line], stdout=subprocess.PIPE, env=environment, check=True)
    return json.loads(done.stdout)


def read(directories: list[Path]) -> None:
    """Bring the files into the page cache, but for their holes."""
    buffer = bytearray(1 << 20)
    for path in files(directories):
        with path.open("rb", buffering=0) as file:
            end = 0
            with contextlib.suppress(OSError):  # no data after the last hole
                while True:
                    begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
                    end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
                    os.lseek(file.fileno(), begin, os.SEEK_SET)
                    while file.tell() < end and file.readinto(buffer):
                        pass


def drop_from_cache(directories: list[Path]) -> None:
    os.sync()
    for path in files(directories):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def files(directories: list[Path]) -> Iterator[Path]:
    return (path for directory in directories for path in directory.rglob("*") if path.is_file())


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in files([directory]))


def tail(log: Path) -> str:
    return log.read_text("utf-8", "replace").strip()[-2000:]


# --- what was measured where -------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the numbers depend on, as far as it can be told."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit(),
    }


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Of the checkout that this file is in; it says if files were changed."""
    line = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    return None


def settings(args: argparse.Namespace) -> dict[str, Any]:
    names = ("repeats", "cold", "rlimit_data", "convert_option")
    own = {} if args.source else {"workload": args.workload}
    return {**{name: getattr(args, name) for name in names}, **own}


# --- command line ------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    names = ", ".join(commands((), "mergekit-tokensurgeon"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="for results and, meanwhile, all"
    )
    parser.add_argument("--sizes", nargs="+", default=["300M"], metavar="BYTES", help="(300M)")
    parser.add_argument("--workload", default="", metavar="OPTIONS", help="of workload.py")
    parser.add_argument("--source", type=Path, help="a checkpoint, in place of a built one")
    parser.add_argument("--helper", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {names}")
    parser.add_argument("--cold", action="store_true", help="inputs are not in the page cache")
    parser.add_argument(
        "--rlimit-data",
        type=size,
        default=0,
        metavar="BYTES",
        help="that every command may allocate",
    )
    parser.add_argument(
        "--convert-option", default="", metavar="OPTIONS", help='of clpstream: "--shared copy"'
    )
    parser.add_argument(
        "--tokensurgeon", default="mergekit-tokensurgeon", metavar="PROGRAM", help="of mergekit"
    )
    args = parser.parse_args()
    if bool(args.source) != bool(args.helper):
        parser.error("--source and --helper go together")
    return args


if __name__ == "__main__":
    main()
