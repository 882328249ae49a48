"""The command line: parse, call, print. What it does is in clpstream.conversion.

Exit codes: 0 done; 1 a defect or a failing machine; 2 wrong usage or input that can't be used;
130 interrupted (Ctrl-C); 143 terminated; 129 hung up.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from clpstream.errors import ClpstreamError
from clpstream.memory import LEAST
from clpstream.version import __version__

if TYPE_CHECKING:
    from clpstream.conversion import Conversion
    from clpstream.progress import Progress
    from clpstream.transfer import Method

Command = Callable[..., Any]

_ARENA_MAX = -8
"""glibc's M_ARENA_MAX."""
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> NoReturn:
    """Run the command line and exit: the console script."""
    _tune_libraries()
    for number in _STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, _stop)
    try:
        cli.main(sys.argv[1:] or ["--help"], standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = "clpstream" if context is None else context.command_path
        _fail(f"{error.format_message().rstrip('.')}; try '{command} --help'", 2)
    except _Stopped as stopped:
        number = signal.Signals(stopped.args[0])
        _fail(f"stopped by {number.name}; nothing half-written is left", 128 + number)
    except ClpstreamError as error:
        _fail(str(error), 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 2)
    except MemoryError:
        _fail("out of memory; --dry-run tells how much is needed", 1)
    sys.exit(0)


def _tune_libraries() -> None:
    """Defaults of libraries that don't suit a program that works on a few large blocks.

    Threads of OpenBLAS and OpenMP wait for more work in a loop, for up to 30 ms after each product:
    with blocks to be read in between, a fifth of all processor time. And glibc gives each thread a
    heap of its own, where freed blocks of one are no good to the others: a third of the memory.
    """
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # 2**4 cycles
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def _stop(number: int, frame: object) -> NoReturn:
    """Raise, so that the run tidies up; a second signal must not stop the tidying."""
    for stopping in _STOPPING:
        signal.signal(stopping, signal.SIG_IGN)
    raise _Stopped(number)


class _Stopped(BaseException):
    """A signal asked the run to end."""


def _fail(message: str, code: int) -> NoReturn:
    """One line on stderr."""
    from clpstream.terminal import Lossy, printable

    if sys.stderr is not None:  # as it is where it was closed
        print(f"clpstream: {printable(message)}", file=Lossy(sys.stderr), flush=True)
    sys.exit(code)


def _option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """An option that is an environment variable too: `envvar`, or CLPSTREAM_ and its long name."""
    long = next(name for name in names if name.startswith("--"))
    variable = "CLPSTREAM_" + long.split("/")[0].strip("-").replace("-", "_").upper()
    return click.option(*names, **{"envvar": variable, "show_envvar": True, **settings})


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A number of bytes: 134217728, 128M, 0.5G."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """See click.ParamType."""
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([KMG]?)(?:i?B)?", str(value), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is no size; give bytes, or a number with K, M or G", param, ctx)
        size = int(float(found[1]) * 1024 ** " KMG".index(found[2].upper() or " "))
        if size < LEAST:
            self.fail(f"{value} is too little; give {LEAST >> 20}M or more", param, ctx)
        return size


class _Line(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A text that may have spaces: several of them in a variable are one a line."""

    name = "text"
    envvar_list_splitter = "\n"


class _Device(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """The name of a device: auto, cpu, cuda, cuda:1."""

    name = "device"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """See click.ParamType."""
        from clpstream.device import gpu_number
        from clpstream.errors import DeviceError

        try:
            gpu_number(value)
        except DeviceError as error:
            self.fail(str(error), param, ctx)
        return str(value)


def _device_option(default: str, text: str) -> Callable[[Command], Command]:
    return _option(
        "--device",
        type=_Device(),
        metavar="auto|cpu|cuda[:N]",
        default=default,
        show_default=True,
        help=text,
    )


def _conversion_options(command: Command) -> Command:
    """The options that `convert` and `demo` share."""
    options = [
        _option(
            "--method",
            type=click.Choice(
                [
                    *("align", "procrustes", "ridge", "knn", "omp", "clp", "subword", "mean"),
                    *("random", "auto"),
                ]
            ),
            default="align",
            show_default=True,
            help="How the row of a missing token is made. By a linear map from the helper's "
            "embeddings to the source's, fitted on shared tokens: align (a rotation and a "
            "regression, fitted on pairs of words that it finds itself), procrustes (a rotation; "
            "Schönemann 1966), ridge (a regression). As a sum of shared tokens' rows: knn (the "
            "nearest ones by cosine), omp (those that together come closest; arXiv 2506.06607), "
            "clp (all of them, by cosine; CLP-Transfer, Ostendorff & Rehm 2023, arXiv 2301.09626). "
            "Without the helper's weights: subword (the mean of the source tokens that it splits "
            "into; arXiv 2402.09977), mean, random (to compare with). auto: the one of align, "
            "procrustes, ridge, knn and clp that evaluate finds best.",
        ),
        _option(
            "--neighbors",
            type=click.IntRange(min=1),
            metavar="K",
            default=10,
            show_default=True,
            help="knn: how many shared tokens (WECHSEL, Minixhofer et al. 2022, arXiv 2112.06598: "
            "10).",
        ),
        _option(
            "--weights",
            type=click.Choice(["softmax", "sparsemax", "similarity"]),
            default="softmax",
            show_default=True,
            help="knn: softmax of the cosines (WECHSEL); sparsemax over all shared tokens, for "
            "which K is where the search starts (FOCUS, Dobler & de Melo 2023, arXiv 2305.14481; "
            "CLP+, Yamaguchi et al. 2024, arXiv 2402.10712); or proportional to the cosine, "
            "negative ones as 0.",
        ),
        _option(
            "--temperature",
            type=click.FloatRange(min=0, min_open=True),
            metavar="T",
            default=0.1,
            show_default=True,
            help="knn with softmax: cosines are divided by this (WECHSEL: 0.1).",
        ),
        _option(
            "--index",
            metavar="INDEX",
            default="auto",
            show_default=True,
            help="knn: how the nearest tokens are found. exact: all are compared. auto: so too, "
            "but for very large vocabularies on a CPU among candidates, of which those of a sample "
            "of the tokens hold 99 % of the nearest. Or an index of FAISS for the candidates, by "
            "its factory string, such as IVF1024,Flat; the share that it finds is measured and "
            "reported.",
        ),
        _option(
            "--center/--no-center",
            default=True,
            show_default=True,
            help="knn, omp: subtract the shared tokens' mean from the helper's rows before the "
            "cosine (the first step of Mu & Viswanath 2018, arXiv 1702.01417).",
        ),
        _option(
            "--clip-negative",
            is_flag=True,
            help="clp: negative cosines count as 0.",
        ),
        _option(
            "--atoms",
            type=click.IntRange(min=1),
            metavar="K",
            help="omp: of how many shared tokens a row is made at most (64, as in mergekit).",
        ),
        _option(
            "--penalty",
            type=click.FloatRange(min=0, min_open=True),
            metavar="P",
            help="ridge: the penalty, in units of the mean eigenvalue; by default it is found by "
            "generalised cross-validation.",
        ),
        _option(
            "--trim",
            type=click.FloatRange(min=0, max=1, max_open=True),
            metavar="PART",
            help="procrustes: the part of the shared tokens that is left out in each round, those "
            "that agree least (0.15).",
        ),
        _option(
            "--rounds",
            type=click.IntRange(min=0),
            metavar="N",
            help="procrustes: how often that is done (2). align: how often new pairs of words are "
            "looked for (3).",
        ),
        _option(
            "--seed",
            type=click.IntRange(min=0),
            metavar="N",
            help="random: another seed gives other rows (0).",
        ),
        _option(
            "--match",
            type=click.Choice(["bytes", "exact", "fuzzy"]),
            default="bytes",
            show_default=True,
            help="When two vocabularies share a token. bytes: it stands for the same bytes, "
            "however it is written; special tokens by role (bos, eos, pad, unk, cls, sep, mask), "
            "then by name. exact: the same string, as in CLP-Transfer. fuzzy: as bytes; then a "
            "token still missing gets the row of one that differs in case or a leading space only.",
        ),
        _option(
            "--shared",
            type=click.Choice(["auto", "copy", "map"]),
            default="auto",
            show_default=True,
            help="The rows of shared tokens. copy: the source's, bit for bit, as in the paper. "
            "map: those of words and parts of words are made as if they were missing, since tokens "
            "that are written alike often mean different things in two languages. auto: those of "
            "another language on which the two models' rows don't agree. Symbols, numbers, bytes "
            "and special tokens are always copied.",
        ),
        _option(
            "--dry-run",
            is_flag=True,
            help="Say what would be done, and the memory and disk it needs; write nothing.",
        ),
        _option("--quiet", "-q", is_flag=True, help="Print errors only."),
        _option(
            "--json",
            "as_json",
            is_flag=True,
            help="Print one JSON object with the result on stdout; all else goes to stderr.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="clpstream")
def cli() -> None:
    """Give a language model a new vocabulary, without loading the model."""


@cli.command()
@click.argument("source", type=click.Path())  # str: a Path changes some ids, and ''
@click.argument("helper", type=click.Path())
@click.argument("output", type=click.Path())
@_conversion_options
@_option(
    "--tokenizer",
    metavar="MODEL",
    help="Directory or id of OUTPUT's tokenizer, where it is not HELPER's: an extended or pruned "
    "vocabulary, a newer release. Its tokens that neither model has are made from the source "
    "tokens that they split into (--pieces).",
)
@_option(
    "--map-token",
    "map_tokens",
    type=_Line(),
    metavar="TARGET=SOURCE",
    multiple=True,
    help="The target's token TARGET gets the row of the source's token SOURCE, or is made from the "
    "source tokens that the text SOURCE splits into (--pieces). Split at the first = that is not "
    "the first character. Can be given several times (in the variable: one a line).",
)
@_option(
    "--pieces",
    type=click.Choice(["mean", "ends", "first"]),
    help="How a row is made from those of several source tokens. mean: their mean (the default). "
    "ends: the last one's in input embeddings, the first one's in output heads (as "
    "transplant-vocab does). first: their mean, but in output heads half as much of each after the "
    "first (the default of --method subword).",
)
@_option(
    "--pad-to-multiple-of",
    type=click.IntRange(min=1, max=1 << 16),
    metavar="N",
    default=1,
    show_default=True,
    help="Round the number of rows up to a multiple of N; rows without a token are copies of the "
    "source's own such rows, or the mean row if it has none.",
)
@_option(
    "--vocab-tensor",
    "vocab_tensors",
    metavar="NAME",
    multiple=True,
    help="A tensor of SOURCE that is indexed by token id, although its name is not known. Can be "
    "given several times (in the variable: names with spaces between).",
)
@_option(
    "--pass-through",
    metavar="NAME",
    multiple=True,
    help="A tensor of SOURCE that is not indexed by token id, although it looks like it. Can be "
    "given several times.",
)
@_option(
    "--link-mode",
    type=click.Choice(["auto", "copy", "reflink", "hardlink"]),
    default="auto",
    show_default=True,
    help="What becomes of shards that don't change. auto: a clone, which shares blocks until one "
    "is written to, where the file system has that (Btrfs, XFS), else a copy. copy, reflink: that, "
    "or an error. hardlink: the source's own files under a second name, which takes neither time "
    "nor room; who changes one in place changes both.",
)
@_option(
    "--max-memory",
    type=_Size(),
    metavar="SIZE",
    help="Memory that the run may take above the interpreter and its libraries: bytes, or a number "
    "with K, M or G. With less, it takes longer. By default, 512M, or what the machine or "
    "its container leaves if that is less; and what a method's matrices need, if there is more.",
)
@_device_option(
    "cpu",
    "Where large products are made. cuda: on a GPU, by what is installed for it of FAISS, torch "
    "and CuPy; auto: on one if there is one that can be used. The rows are the same but for "
    "rounding.",
)
@_option(
    "--overwrite",
    is_flag=True,
    help="Replace OUTPUT if it exists, once the new one is whole. Refused if it is neither empty "
    "nor a model (clpstream.json, or config.json and weights), or has a hidden directory such as "
    ".git.",
)
@click.pass_context
def convert(
    context: click.Context, /, source: str, helper: str, output: str, **options: Any
) -> None:
    """Write to OUTPUT the model SOURCE with the vocabulary of HELPER.

    SOURCE is the checkpoint whose weights are kept; HELPER is a (small) one in the target language,
    with the tokenizer that OUTPUT gets (subword, mean and random need no more of it). All three are
    directories in Hugging Face layout. SOURCE and HELPER can also be models on the Hugging Face
    Hub, ORG/NAME or ORG/NAME@REVISION: of these, the files that are needed are fetched into the
    Hub's cache, also for a dry run.
    """
    from clpstream.conversion import convert as run

    result = run(
        source,
        helper,
        output,
        method=_method(context, options),
        match=options["match"],
        shared=options["shared"],
        tokenizer=options["tokenizer"],
        map_tokens=_map_tokens(options["map_tokens"]),
        pieces=options["pieces"],
        pad_to_multiple_of=options["pad_to_multiple_of"],
        vocab_tensors=options["vocab_tensors"],
        pass_through=options["pass_through"],
        link_mode=options["link_mode"],
        max_memory=options["max_memory"],
        device=options["device"],
        overwrite=options["overwrite"],
        dry_run=options["dry_run"],
        progress=_progress(options["quiet"]),
    )
    _print_result(result, Path(output), options)


@cli.command()
@click.argument("output", type=click.Path(), default="clpstream-demo")
@_conversion_options
@click.pass_context
def demo(context: click.Context, /, output: str, **options: Any) -> None:
    """Convert the built-in English model to German; the result goes to OUTPUT.

    An earlier demo in OUTPUT (./clpstream-demo by default) is replaced.
    """
    from clpstream.demo import run_demo

    result = run_demo(
        output,
        method=_method(context, options),
        match=options["match"],
        shared=options["shared"],
        dry_run=options["dry_run"],
        progress=_progress(options["quiet"]),
    )
    _print_result(result, Path(output), options)
    if not (options["quiet"] or options["as_json"] or options["dry_run"]):
        from clpstream.demo import compare_tokenizers

        _print(compare_tokenizers(Path(output)))


@cli.command()
@click.argument("model", type=click.Path())
@_option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(model: str, as_json: bool) -> None:
    """Say what MODEL is: its vocabulary tensors, its tokenizer, and what would stop a conversion.

    MODEL is a directory in Hugging Face layout or a model on the Hub, of which headers and small
    files are read alone.
    """
    from clpstream.inspection import inspect as look
    from clpstream.terminal import description

    found = look(model, _progress(as_json))
    _print(json.dumps(found.to_json(), indent=2) if as_json else description(found))


@cli.command()
@click.argument("source", type=click.Path())
@click.argument("helper", type=click.Path())
@_option(
    "--method",
    "methods",
    envvar="CLPSTREAM_METHODS",  # convert's can be one that is not tried here
    metavar="NAME",
    multiple=True,
    help="A method of convert to try, but for subword and auto. Can be given several times (in the "
    "variable: names with spaces between).  [default: all of these]",
)
@_option(
    "--repeats",
    type=click.IntRange(min=1, max=1000),
    metavar="N",
    default=3,
    show_default=True,
    help="How many times, each with another tenth hidden.",
)
@_option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Of the choice of tokens: the same seed, the same tokens.",
)
@_option(
    "--match",
    type=click.Choice(["bytes", "exact", "fuzzy"]),
    default="bytes",
    show_default=True,
    help="When two vocabularies share a token, as in convert.",
)
@_option(
    "--vocab-tensor",
    "vocab_tensors",
    metavar="NAME",
    multiple=True,
    help="SOURCE's input embeddings, if their name is not known.",
)
@_option(
    "--max-memory",
    type=_Size(),
    metavar="SIZE",
    help="Memory that the run may take, as in convert.",
)
@_device_option("cpu", "Where large products are made, as in convert.")
@_option("--quiet", "-q", is_flag=True, help="Print the result and errors only.")
@_option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(source: str, helper: str, **options: Any) -> None:
    """Say which method would make the best rows for SOURCE with the vocabulary of HELPER.

    A tenth of the tokens that both have is hidden (1,000 at most), and each method makes their rows
    in SOURCE's input embeddings from the others. Nothing is written, no model is run. MRR: the mean
    reciprocal rank of a token's own row among 4,000 at most, by the cosine with the row that was
    made. Seconds are those that the hidden rows took; what a method would need is its estimate of
    memory for a conversion.
    """
    from clpstream.evaluation import evaluate as run
    from clpstream.evaluation_table import table

    found = run(
        source,
        helper,
        methods=tuple(dict.fromkeys(options["methods"])),
        match=options["match"],
        repeats=options["repeats"],
        seed=options["seed"],
        max_memory=options["max_memory"],
        vocab_tensors=options["vocab_tensors"],
        device=options["device"],
        progress=_progress(options["quiet"]),
    )
    _print(json.dumps(found.to_json(), indent=2) if options["as_json"] else table(found))


@cli.command()
@click.argument("model", type=click.Path())
@click.argument("model2", type=click.Path(), required=False)
@_option(
    "--text",
    type=click.Path(),
    metavar="FILE",
    multiple=True,
    help="A UTF-8 text file: one document, or several with lines <|endoftext|> between them. Can "
    "be given several times.",
)
@_option(
    "--sample-from",
    metavar="MODEL",
    help="In place of a file: text that this model makes up, such as the helper of a conversion.",
)
@_option(
    "--sample-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    default=20_000,
    show_default=True,
    help="How many tokens it samples, from its whole distribution.",
)
@_option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Of the sample: the same seed, the same text.",
)
@_option(
    "--context",
    type=click.IntRange(min=2),
    metavar="N",
    help="Tokens that a model sees at most.  [default: what it is made for, 1024 at most]",
)
@_option(
    "--stride",
    type=click.IntRange(min=1),
    metavar="N",
    help="By how many tokens the window of a model advances in a longer document; every token but "
    "the first ones is predicted from at least N less than the context.  [default: half the "
    "context]",
)
@_option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of the weights and the computation; auto: the checkpoint's. The loss is in float32.",
)
@_device_option("auto", "Where it is computed. cuda: on a GPU; auto: on one if there is one.")
@_option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def score(context: click.Context, /, model: str, model2: str | None, **options: Any) -> None:
    """Say how many bits a byte of text costs MODEL, and MODEL2, and how sure the difference is.

    Bits per byte (the fewer the better) can be compared across vocabularies, as perplexities can
    not. The models are causal language models, directories or ids on the Hub, and are loaded one
    after the other. Needs torch and transformers: pip install 'clpstream[score]'.
    """
    from clpstream import scoring

    progress = _progress(False)
    how = {"dtype": options["dtype"], "device": options["device"], "progress": progress}
    if options["text"] and options["sample_from"]:
        raise click.UsageError("--text and --sample-from: give one of them")
    if options["text"]:
        for name in ("sample_tokens", "seed"):
            _refuse(context, name, "--sample-from")
        texts = scoring.read_documents(options["text"])
    elif options["sample_from"]:
        count, seed = options["sample_tokens"], options["seed"]
        texts = scoring.sample_documents(options["sample_from"], count, seed, **how)
    else:
        helper = scoring.helper_of(model2 or model) or scoring.helper_of(model)
        made = f", such as the helper {helper} that clpstream.json names" if helper else ""
        raise click.UsageError(
            f"nothing to score on; give --text FILE, or --sample-from MODEL{made}"
        )
    window = {"context": options["context"], "stride": options["stride"]}
    models = [model] if model2 is None else [model, model2]
    scores = [scoring.score(name, texts, **window, **how) for name in models]
    more = scoring.score_difference(*scores) if model2 is not None else None
    if options["as_json"]:
        sampled = ("sample_from", "sample_tokens", "seed")
        given = sampled if options["sample_from"] else ("text",)
        result = {
            **{name: options[name] for name in given},
            "scores": [found.to_json() for found in scores],
            "difference": None if more is None else more.to_json(),
        }
        _print(json.dumps(result, indent=2))
    else:
        _print(scoring.table(scores, more))


def _map_tokens(pairs: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        place = pair.find("=", 1)
        if place < 0 or place == len(pair) - 1:
            raise click.UsageError(f"--map-token {pair!r}: it is not TARGET=SOURCE")
        if pair[:place] in found:
            raise click.UsageError(f"--map-token: {pair[:place]!r} is there twice; give it once")
        found[pair[:place]] = pair[place + 1 :]
    return found


def _method(context: click.Context, options: dict[str, Any]) -> str | Method:
    from clpstream.transfer import METHODS

    method, own = options["method"], {}
    for name in options:  # a method's parameters are named as their options; None is its default
        methods = [each for each, made in METHODS.items() if name in signature(made).parameters]
        if not methods:
            continue
        if method not in methods:
            _refuse(context, name, f"--method {' and '.join(methods)}")
        elif options[name] is not None:
            own[name] = options[name]
    if method == "knn" and options["weights"] != "softmax":
        _refuse(context, "temperature", "--weights softmax")
    if method == "knn" and options["weights"] == "sparsemax":
        _refuse(context, "index", "--weights softmax and similarity")
    return method if method == "auto" else METHODS[method](**own)


def _refuse(context: click.Context, name: str, of: str) -> None:
    """Refuse an option that is given and does nothing; a variable is for all runs."""
    if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
        raise ClpstreamError(f"--{name.replace('_', '-')} is an option of {of}; leave it out")


def _progress(quiet: bool) -> Progress:
    from clpstream.terminal import progress_for

    return progress_for(sys.stderr, quiet)


def _print_result(result: Conversion, output: Path, options: dict[str, Any]) -> None:
    from clpstream.terminal import summary

    if not options["quiet"]:
        _print(summary(result, output), err=options["as_json"])
    if options["as_json"]:
        _print(json.dumps(result.to_json(), indent=2))


def _print(text: str, err: bool = False) -> None:
    """Print a result; if its reader has gone (a pipe to head), the work is done all the same."""
    try:
        click.echo(text, err=err)
    except BrokenPipeError:
        from clpstream.terminal import silence

        silence(sys.stderr if err else sys.stdout)
    except OSError as error:
        raise ClpstreamError(
            f"the work is done, but its result can't be printed: {error.strerror}"
        ) from None
