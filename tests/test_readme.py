"""The README tells the truth about the command line. `python tests/test_readme.py` renews it."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner
from make import random_rows, write_helper, write_source

from clpstream.cli import cli

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- help: (\w+) -->\n```text\n)(.*?)(```\n<!-- end -->)", re.DOTALL)


def help_of(command: str) -> str:
    done = CliRunner().invoke(cli, [command, "--help"], terminal_width=96, prog_name="clpstream")
    return done.output


def renew(text: str) -> str:
    return BLOCK.sub(lambda block: block[1] + help_of(block[2]) + block[4], text)


def test_the_help_blocks_are_what_the_command_prints():
    text = README.read_text("utf-8")
    assert BLOCK.search(text)
    for block in BLOCK.finditer(text):  # words only: how lines are broken depends on click
        assert block[3].split() == help_of(block[2]).split()


def test_the_python_examples_run(tmp_path, monkeypatch):
    write_source(tmp_path / "source")
    write_helper(tmp_path / "helper")
    monkeypatch.chdir(tmp_path)
    names = {name: random_rows(4, 8, 1) for name in ("x_anchors", "x_missing", "y_anchors")}
    examples = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert len(examples) == 2
    for code in examples:
        exec(code, names)
    assert names["new_rows"].shape == (4, 8)
    assert (tmp_path / "target" / "clpstream.json").exists()


if __name__ == "__main__":
    README.write_text(renew(README.read_text("utf-8")), "utf-8")
