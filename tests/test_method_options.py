"""The methods' options on the command line: they arrive, and go with their methods only."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import Pair
from make import TARGET_WORDS, write_helper

from clpstream import cli as command_line
from clpstream.cli import cli
from clpstream.transfer import METHODS

OPTIONS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "align": [("--rounds 1", {"rounds": 1})],
    "procrustes": [("--rounds 4", {"rounds": 4}), ("--trim 0.3", {"trim": 0.3})],
    "ridge": [("--penalty 0.7", {"penalty": 0.7})],
    "knn": [
        ("--neighbors 4", {"neighbors": 4}),
        ("--weights similarity", {"weights": "similarity"}),
        ("--temperature 0.5", {"temperature": 0.5}),
        ("--no-center", {"center": False}),
        ("--index exact", {"index": "exact"}),
    ],
    "omp": [("--atoms 5", {"atoms": 5}), ("--no-center", {"center": False})],
    "clp": [("--clip-negative", {"clip_negative": True})],
    "subword": [],
    "mean": [],
    "random": [("--seed 9", {"seed": 9})],
}
EVERY = sorted({option for options in OPTIONS.values() for option, _ in options})
REFUSED = [
    (method, option)
    for method, own in OPTIONS.items()
    for option in EVERY
    if option.split()[0] not in [mine.split()[0] for mine, _ in own]
]
GENERAL = {"match", "shared", "map_tokens", "pieces", "pad_to_multiple_of", "vocab_tensors"}


@pytest.fixture(autouse=True)
def quiet_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "_STOPPING", ())


def options_of(pair: Pair, *arguments: str, **variables: str) -> dict[str, Any]:
    """What the report says, without what is no option of the method."""
    line = ["convert", *map(str, pair), "--dry-run", "--json", "-q", *arguments]
    done = CliRunner().invoke(cli, line, env=variables)
    assert done.exit_code == 0, done.exception
    options = json.loads(done.stdout)["options"]
    return {name: options[name] for name in options.keys() - GENERAL - {"pass_through"}}


def test_every_method_and_every_option_is_tried() -> None:
    assert OPTIONS.keys() == METHODS.keys()
    tried = {o.split()[0].strip("-").replace("no-", "").replace("-", "_") for o in EVERY}
    assert tried == {field.name for made in METHODS.values() for field in fields(made)}
    options = {option.name for option in cli.commands["convert"].params}
    assert tried <= options
    method = next(o for o in cli.commands["convert"].params if o.name == "method")
    assert set(method.type.choices) == {*METHODS, "auto"}


@pytest.mark.parametrize("method", OPTIONS)
def test_defaults_are_the_library_s(pair: Pair, method: str) -> None:
    expected = {"method": method, **METHODS[method]().options()}
    assert options_of(pair, "--method", method) == expected


@pytest.mark.parametrize(
    ("method", "place"), [(m, i) for m in OPTIONS for i in range(len(OPTIONS[m]))]
)
def test_an_option_reaches_its_method_and_so_does_its_variable(
    pair: Pair, method: str, place: int
) -> None:
    option, value = OPTIONS[method][place]
    expected = {"method": method, **METHODS[method](**value).options()}
    assert value.items() <= expected.items()
    assert expected != {"method": method, **METHODS[method]().options()}
    assert options_of(pair, "--method", method, *option.split()) == expected
    ((name, setting),) = value.items()
    variables = {f"CLPSTREAM_{name.upper()}": str(setting), "CLPSTREAM_METHOD": method}
    assert options_of(pair, **variables) == expected


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: Any, *arguments: Any) -> str:
    """What is said as the command ends with 2."""
    monkeypatch.setattr(sys, "argv", ["clpstream", "convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    return said.err


@pytest.mark.parametrize(("method", "option"), REFUSED)
def test_an_option_of_another_method_is_refused(
    pair: Pair, capsys: Any, monkeypatch: Any, method: str, option: str
) -> None:
    line = [*pair, "--method", method, *option.split()]
    said = refused(capsys, monkeypatch, *line)
    name = option.split()[0].replace("--no-", "--")
    assert f"{name} is an option of --method " in said
    owners = said.split("--method ")[1].split(";")[0].split(" and ")
    mine = [m for m, own in OPTIONS.items() if option.split()[0] in [o.split()[0] for o, _ in own]]
    assert sorted(owners) == sorted(mine)
    assert not pair.output.exists()


@pytest.mark.parametrize(
    "option",
    [
        *("--trim 1", "--trim nan", "--rounds -1", "--atoms 0"),
        *("--penalty 0", "--penalty inf", "--seed -1", "--seed 18446744073709551616"),
    ],
)
def test_values_out_of_range_are_refused(
    pair: Pair, capsys: Any, monkeypatch: Any, option: str
) -> None:
    name = option.split()[0]
    method = next(m for m, own in OPTIONS.items() if any(name in mine for mine, _ in own))
    said = refused(capsys, monkeypatch, *pair, "--method", method, *option.split())
    assert name.strip("-") in said


def test_a_variable_of_another_method_is_left_alone(pair: Pair) -> None:
    """A variable is for all runs, whichever method they use."""
    expected = {"method": "knn", **METHODS["knn"]().options()}
    assert options_of(pair, "--method", "knn", CLPSTREAM_TRIM="0.5") == expected


def test_shared_and_pieces_arrive(pair: Pair) -> None:
    write_helper(pair.helper, [*TARGET_WORDS, *(f" new{n}" for n in range(100))])
    line = ["convert", *map(str, pair), "--dry-run", "--json", "-q"]
    for options, expected in [
        ([], ("align", "auto", "mean")),
        (["--shared", "map", "--pieces", "ends"], ("align", "map", "ends")),
        (["--shared", "copy", "--pieces", "first"], ("align", "copy", "first")),
        (["--method", "subword"], ("subword", "copy", "first")),
    ]:
        found = json.loads(CliRunner().invoke(cli, [*line, *options]).stdout)["options"]
        assert (found["method"], found["shared"], found["pieces"]) == expected


@pytest.mark.parametrize("command", ["convert", "demo"])
def test_the_help_lists_every_method_and_option(command: str) -> None:
    said = CliRunner().invoke(cli, [command, "--help"]).output
    assert all(option.split()[0] in said for option in EVERY)
    assert all(method in said for method in METHODS)
    assert "CLPSTREAM_ROUNDS" in said
