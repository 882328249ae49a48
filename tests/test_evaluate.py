"""`clpstream evaluate` and clpstream.evaluate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from make import random_rows, read_json, read_tensors, write_checkpoint, write_tokenizer

import clpstream
from clpstream import TransferError, memory
from clpstream.evaluation import EVALUATED, choose
from clpstream.plan import CHOICES
from clpstream.progress import Progress
from clpstream.transfer import METHODS, held_out
from clpstream.transfer.held_out import Spaces, draw, judge, measure

HELPER_NAME, SOURCE_NAME = "transformer.wte.weight", "model.embed_tokens.weight"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHARED = [f" {a}{b}" for a in LETTERS[:15] for b in LETTERS]
"""390 words that both have."""
WIDTH = 12


def run(*arguments: object, command: str = "evaluate", **variables: str) -> Any:
    """The command line."""
    return subprocess.run(
        [sys.executable, "-m", "clpstream", command, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(clpstream.__file__).parents[1]), **variables},
        check=False,
    )


def write_pair(root: Path, shared: list[str] = SHARED, noise: float = 0.0) -> None:
    """A helper whose shared words lie as the source's do, turned, and noise besides."""
    source, helper = [*shared, " house", " and"], [" Haus", *shared, " und"]
    old, new = write_tokenizer(root / "source", source), write_tokenizer(root / "helper", helper)
    theirs = random_rows(len(old), WIDTH, 1)
    generator = np.random.default_rng(2)
    turn = np.linalg.qr(generator.standard_normal((WIDTH, WIDTH)))[0]
    ours = random_rows(len(new), WIDTH, 3)
    for piece, token in new.items():
        if piece in old:
            ours[token] = 3 * theirs[old[piece]] @ turn + 1
    ours += noise * generator.standard_normal(ours.shape).astype(np.float32)
    config = {"model_type": "llama", "vocab_size": len(old)}
    write_checkpoint(root / "source", {SOURCE_NAME: theirs}, config)
    write_checkpoint(
        root / "helper", {HELPER_NAME: ours}, {"model_type": "gpt2", "vocab_size": len(new)}
    )


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    write_pair(tmp_path, noise=0.3)
    return tmp_path / "source", tmp_path / "helper"


def spaces(anchors: int = 300, missing: int = 40, seed: int = 0) -> Spaces:
    """Random rows, the anchors' places shuffled, and every source row a word."""
    generator = np.random.default_rng(seed)
    anchor_rows = generator.permutation(anchors + missing)[:anchors]
    return Spaces(
        helper=random_rows(anchors + missing, 10, seed),
        source=random_rows(anchors + 50, WIDTH, seed + 1),
        anchors=generator.permutation(anchors + 50)[:anchors],
        anchor_rows=anchor_rows,
        missing=np.setdiff1d(np.arange(anchors + missing), anchor_rows),
        words=np.arange(anchors + 50),
    )


@dataclass(frozen=True)
class Spy:
    """Gives rows that a test knows, and keeps what it was shown."""

    answers: np.ndarray
    learns_from_wanted: bool = False
    name: ClassVar[str] = "spy"
    reads_helper: ClassVar[bool] = True
    shown: ClassVar[dict[str, np.ndarray]] = {}

    def prepare(self, anchors: Any, wanted: Any, own: Any = None) -> Any:
        self.shown.update(anchors=anchors[:], wanted=wanted[:])
        assert own is None
        return self

    def rows(self, anchors: Any, words: Any = None) -> Any:
        self.shown.update(source=anchors[:], words=None if words is None else words[:])
        return self.answers[: len(self.shown["wanted"])]

    def fewest(self, d_helper: int, d_source: int) -> int:
        return 1

    def options(self) -> dict[str, Any]:
        return {}

    def working_bytes(self, *sizes: int) -> int:
        return 0


def truth(made: np.ndarray, candidates: np.ndarray, center: np.ndarray) -> tuple[float, ...]:
    """MRR, mean cosine and median ratio of lengths, token by token in float64."""
    reciprocals, cosines = [], []
    for place, row in enumerate(made.astype(np.float64)):
        scores = []
        for candidate in candidates.astype(np.float64):
            a, b = row - center, candidate - center
            scores.append(a @ b / np.sqrt((a @ a) * (b @ b)))
        reciprocals.append(1 / (1 + sum(score > scores[place] for score in scores)))
        cosines.append(scores[place])
    ratios = [np.sqrt(a @ a / (b @ b)) for a, b in zip(made, candidates, strict=False)]
    return np.mean(reciprocals), np.mean(cosines), np.median(ratios)


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_are_those_of_their_definitions(seed: int) -> None:
    candidates = random_rows(90, WIDTH, seed)
    made = candidates[:30] + 0.5 * np.random.default_rng(seed + 9).standard_normal((30, WIDTH))
    made = made.astype(np.float32)
    center = candidates[40:].mean(axis=0, dtype=np.float64)
    expected = truth(made, candidates, center)
    assert 0.1 < expected[0] < 0.9
    assert judge(made, candidates, center) == pytest.approx(expected, abs=1e-6)


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates, center = random_rows(90, WIDTH, 1), np.full(WIDTH, 0.1)
    made = random_rows(30, WIDTH, 2)
    expected = judge(made, candidates, center)
    small = held_out.blocks
    monkeypatch.setattr(held_out, "blocks", lambda rows: small(rows, 7 * 4 * WIDTH))
    assert judge(made, candidates, center) == pytest.approx(expected, abs=1e-6)


def test_rows_that_tell_nothing_get_what_chance_gives() -> None:
    candidates, center = random_rows(200, WIDTH, 1), np.full(WIDTH, 0.5)
    rank = np.mean([1 / place for place in range(1, 201)])
    made = np.full((20, WIDTH), 0.5, np.float32)
    mrr, cosine, _ = judge(made, candidates, center)
    assert (mrr, cosine) == (pytest.approx(rank), 0)
    assert held_out.chance(200) == pytest.approx(rank)


def test_candidates_that_are_level_share_their_ranks() -> None:
    candidates = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [0, -1]], np.float32)
    mrr, cosine, ratio = judge(2 * candidates[:1], candidates, np.zeros(2))
    assert mrr == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert (cosine, ratio) == (1, 2)


def test_true_rows_of_zeros_have_no_ratio() -> None:
    candidates = np.array([[0, 0], [0, 2], [1, 0]], np.float32)
    assert judge(np.ones((2, 2), np.float32), candidates, np.ones(2))[2] == pytest.approx(
        np.sqrt(2) / 2
    )
    assert judge(np.ones((1, 2), np.float32), candidates[:1], np.ones(2))[2] == 0


def test_hidden_anchors_are_shown_to_no_method() -> None:
    some = spaces()
    drawn = draw(some, 0, 0)
    assert len(drawn.hidden) == 30
    assert len(drawn.known) == 270
    assert len(np.intersect1d(drawn.hidden, drawn.known)) == 0
    assert np.isin(drawn.others, drawn.known).all()
    spy = Spy(random_rows(500, WIDTH, 7))
    measure(spy, some, drawn)
    rows = some.source[some.anchors[drawn.hidden]]
    assert spy.shown["anchors"].tolist() == some.helper[some.anchor_rows[drawn.known]].tolist()
    assert spy.shown["wanted"].tolist() == some.helper[some.anchor_rows[drawn.hidden]].tolist()
    for name in ("source", "words"):
        shown = {row.tobytes() for row in spy.shown[name]}
        assert not any(row.tobytes() in shown for row in rows)
    assert len(spy.shown["words"]) == 350 - 30
    np.testing.assert_allclose(drawn.center, spy.shown["source"].mean(axis=0), rtol=1e-5)


def test_anchors_with_a_hidden_ones_source_row_are_not_shown() -> None:
    """As bos and eos of the helper can both be the source's one special token."""
    anchors = np.concatenate([np.arange(100), np.arange(100), np.arange(100)])
    some = replace(spaces(300), anchors=anchors, words=np.arange(0))
    drawn = draw(some, 3, 0)
    assert len(drawn.hidden) == 10
    assert len(np.unique(anchors[drawn.hidden])) == 10
    assert len(drawn.known) == 300 - 3 * 10
    assert not np.isin(anchors[drawn.known], anchors[drawn.hidden]).any()
    assert len(np.unique(anchors[drawn.others])) == len(drawn.others) == 90
    spy = Spy(random_rows(500, WIDTH, 7))
    measure(spy, some, drawn)
    assert spy.shown["words"] is None


def test_what_learns_from_wanted_tokens_sees_them_among_missing_ones() -> None:
    some = spaces()
    drawn = draw(some, 0, 0)
    wanted = np.union1d(some.anchor_rows[drawn.hidden], some.missing)
    # the answers are the true rows where the hidden tokens are, and nonsense elsewhere
    answers = random_rows(len(wanted), WIDTH, 7)
    for place in drawn.hidden:
        at = int(np.flatnonzero(wanted == some.anchor_rows[place])[0])
        answers[at] = some.source[some.anchors[place]]
    spy = Spy(answers, learns_from_wanted=True)
    found = measure(spy, some, drawn)
    assert spy.shown["wanted"].tolist() == some.helper[wanted].tolist()
    assert (found.mrr, found.norm_ratio) == (1, 1)
    assert found.cosine == pytest.approx(1)


def test_the_sample_is_bounded() -> None:
    some = spaces(anchors=12_000, missing=10)
    drawn = draw(some, 0, 0)
    assert (len(drawn.hidden), len(drawn.known), len(drawn.others)) == (1000, 11_000, 3000)


def test_a_rotated_source_is_found_again(tmp_path: Path) -> None:
    write_pair(tmp_path)
    found = clpstream.evaluate(tmp_path / "source", tmp_path / "helper", repeats=2)
    by_name = {one.method: one for one in found.methods}
    assert set(by_name) == set(EVALUATED)
    for name in ("procrustes", "align"):
        assert by_name[name].mrr.mean > 0.99
        assert by_name[name].cosine.mean > 0.99
    assert by_name["procrustes"].norm_ratio.mean == pytest.approx(1, abs=0.01)
    assert by_name["mean"].mrr.mean == pytest.approx(found.chance, rel=0.2)
    assert by_name["mean"].cosine.mean == pytest.approx(0, abs=0.01)
    assert by_name["random"].mrr.mean < 0.1
    assert found.best.mrr.mean == max(one.mrr.mean for one in found.methods)
    assert (found.anchors, found.hidden, found.candidates) == (391, 39, 391)
    assert found.missing == 2


def test_knn_as_the_definitions_have_it(pair: tuple[Path, Path]) -> None:
    """The whole way from files, in float64, with the draw alone taken from clpstream."""
    from clpstream.evaluation import _spaces

    some, _ = _spaces(*pair, "bytes", ())
    helper = read_tensors(pair[1])[HELPER_NAME].astype(np.float64)
    source = read_tensors(pair[0])[SOURCE_NAME].astype(np.float64)
    figures = []
    for repeat in range(2):
        drawn = draw(some, 5, repeat)
        known, hidden = some.anchors[drawn.known], some.anchors[drawn.hidden]
        x, q = helper[some.anchor_rows[drawn.known]], helper[some.anchor_rows[drawn.hidden]]
        x, q = x - x.mean(axis=0), q - x.mean(axis=0)
        scores = (q / np.linalg.norm(q, axis=1)[:, None]) @ (
            x / np.linalg.norm(x, axis=1)[:, None]
        ).T
        made = []
        for row in scores:
            nearest = np.argsort(-row)[:10]
            weights = np.exp(row[nearest] / 0.1)
            made.append(weights / weights.sum() @ source[known[nearest]])
        rest = some.anchors[drawn.others]
        candidates = source[np.concatenate([hidden, rest])]
        figures.append(truth(np.array(made), candidates, source[known].mean(axis=0)))
    found = clpstream.evaluate(*pair, methods=["knn"], repeats=2, seed=5).best
    for place, figure in enumerate((found.mrr, found.cosine, found.norm_ratio)):
        values = [one[place] for one in figures]
        assert figure.mean == pytest.approx(np.mean(values), abs=1e-5)
        assert figure.spread == pytest.approx(abs(values[0] - values[1]) / np.sqrt(2), abs=1e-5)


def test_the_seed_decides(pair: tuple[Path, Path]) -> None:
    def figures(**options: Any) -> list[Any]:
        found = clpstream.evaluate(*pair, methods=["knn", "random"], **options)
        return [(one.method, one.mrr, one.cosine, one.norm_ratio) for one in found.methods]

    assert figures(seed=1) == figures(seed=1)
    assert figures(seed=1) != figures(seed=2)
    assert figures(repeats=1)[0][1].spread is None


def test_methods_of_ones_own(pair: tuple[Path, Path]) -> None:
    methods = [clpstream.Knn(neighbors=1), clpstream.Knn(neighbors=20), "mean"]
    found = clpstream.evaluate(*pair, methods=methods, repeats=1)
    assert sorted(one.options.get("neighbors", 0) for one in found.methods) == [0, 1, 20]


def test_few_anchors_are_an_error_or_a_warning(tmp_path: Path) -> None:
    write_pair(tmp_path, SHARED[:18])
    pair = tmp_path / "source", tmp_path / "helper"
    with pytest.raises(TransferError, match="have 19 rows in the source, too few"):
        clpstream.evaluate(*pair)
    write_pair(tmp_path, SHARED[:20])
    done = clpstream.evaluate(*pair, methods=["knn", clpstream.Knn(neighbors=20), "mean"])
    assert done.hidden == 2
    assert len(done.warnings) == 1
    assert "knn was shown 19 tokens, and wants 20" in done.warnings[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"methods": ["none"]}, "method is 'none'; it can be align"),
        ({"repeats": 0}, "repeats is 0"),
        ({"repeats": True}, "repeats is True"),
        ({"seed": -1}, "seed is -1"),
        ({"max_memory": "512M"}, "max_memory is '512M'; it must be a number of bytes"),
        ({"max_memory": 0}, "max_memory is 0"),
        ({"methods": "knn"}, "methods: give a list of names or objects, not a str"),
        ({"methods": [clpstream.Knn]}, r"method is the class Knn; .* object: Knn\(\)"),
        ({"vocab_tensors": SOURCE_NAME}, "vocab_tensors: give a list of names, not a str"),
    ],
)
def test_arguments_out_of_range(pair: tuple[Path, Path], options: Any, says: str) -> None:
    with pytest.raises(TransferError, match=says):
        clpstream.evaluate(*pair, **options)


def test_json_is_the_library(pair: tuple[Path, Path]) -> None:
    done = run(*pair, "--json", "--method", "knn", "--method", "mean", "--repeats", 2, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    expected = json.loads(
        json.dumps(clpstream.evaluate(*pair, methods=["knn", "mean"], repeats=2).to_json())
    )
    for result in (found, expected):
        assert result.pop("seconds") > 0
        assert result.pop("peak_memory") > 1 << 20
        for method in result["methods"]:
            assert method.pop("seconds")["mean"] > 0
    assert found == expected
    assert list(found) == [
        *("source", "helper", "match", "seed", "repeats", "anchors", "hidden", "candidates"),
        *("missing", "chance", "methods", "device", "warnings", "best"),
    ]
    assert found["best"] == "knn"


def test_people_get_a_table(pair: tuple[Path, Path]) -> None:
    done = run(*pair, CLPSTREAM_METHODS="mean knn procrustes knn")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        *("MRR", "centred", "cosine", "norm", "ratio", "seconds", "would", "need")
    ]
    assert [line.split()[0] for line in lines[1:7]] == [
        *("procrustes", "knn", "mean", "chance", "hidden", "MRR")
    ]
    assert [line.endswith("<- best") for line in lines] == [False, True] + [False] * 5
    assert "39 of 391 shared tokens, 3 times" in lines[5]
    assert "clpstream score" in lines[6]
    assert "hidden tokens: 9 trials" in done.stderr
    assert "±" not in run(*pair, "--method", "mean", "--repeats", 1).stdout


def test_the_variable_of_convert_s_method_is_not_this_one_s(pair: tuple[Path, Path]) -> None:
    done = run(*pair, "--json", "--quiet", CLPSTREAM_METHOD="auto", CLPSTREAM_METHODS="knn")
    assert done.returncode == 0, done.stderr
    assert [method["method"] for method in json.loads(done.stdout)["methods"]] == ["knn"]


def test_source_embeddings_by_another_name(pair: tuple[Path, Path]) -> None:
    tensors = read_tensors(pair[0])
    rows = tensors.pop(SOURCE_NAME)
    write_checkpoint(pair[0], {"odd": rows}, {"vocab_size": len(rows)})
    assert run(*pair, "--method", "mean").returncode == 2
    assert run(*pair, "--method", "mean", "--vocab-tensor", "odd").returncode == 0


@pytest.mark.parametrize(
    ("damage", "arguments", "says"),
    [
        (lambda pair: (pair[1] / "tokenizer.json").unlink(), [], "no tokenizer in it"),
        (lambda pair: (pair[0] / "model.safetensors").unlink(), [], "no "),
        (lambda pair: None, ["--method", "nothing"], "method is 'nothing'"),
        (lambda pair: None, ["--method", "subword"], "method is 'subword'"),
        (lambda pair: None, ["--repeats", "0"], "--repeats"),
        (lambda pair: write_tokenizer(pair[0], ["A"], special={}), [], "no token in common"),
    ],
)
def test_bad_input_is_one_line(
    pair: tuple[Path, Path], damage: Any, arguments: list[str], says: str
) -> None:
    damage(pair)
    done = run(*pair, "--quiet", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("clpstream: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_rows_that_are_not_finite_are_named(pair: tuple[Path, Path]) -> None:
    tensors = read_tensors(pair[1])
    tensors[HELPER_NAME][7] = np.nan
    write_checkpoint(pair[1], tensors, {"model_type": "gpt2"})
    with pytest.raises(clpstream.ClpstreamError, match="row 7 has NaN or Inf"):
        clpstream.evaluate(*pair, methods=["knn"])
    assert run(*pair, "--method", "procrustes").returncode == 2


def test_auto_takes_the_method_that_evaluate_has_first(pair: tuple[Path, Path]) -> None:
    target = pair[0].parent / "target"
    found = clpstream.evaluate(*pair, methods=CHOICES, repeats=1)
    done = clpstream.convert(*pair, target, method="auto")
    chosen = done.report.chosen
    assert chosen is not None
    assert chosen.method == found.best.method
    assert chosen.options == found.best.options
    assert chosen.mrr == {one.method: round(one.mrr.mean, 4) for one in found.methods}
    assert done.report.options["method"] == "auto"
    assert read_json(target / "clpstream.json")["chosen"] == json.loads(
        json.dumps(done.report.to_json()["chosen"])
    )
    other = clpstream.convert(*pair, pair[0].parent / "other", method=chosen.method)
    assert other.report.chosen is None
    weights = "model.safetensors"
    assert (target / weights).read_bytes() == (pair[0].parent / "other" / weights).read_bytes()


def test_auto_on_the_command_line(pair: tuple[Path, Path]) -> None:
    target = pair[0].parent / "target"

    def convert(*arguments: object) -> Any:
        return run(*pair, target, *arguments, command="convert")

    dry = convert("--method", "auto", "--dry-run")
    assert dry.returncode == 0
    assert "(auto)" in dry.stdout
    assert "\nchosen " not in dry.stdout
    done = convert("--method", "auto")
    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if line.startswith("chosen"))
    assert line.startswith("chosen    align: mean reciprocal rank of hidden shared tokens: ")
    assert all(f"{name} 0." in line or f"{name} 1." in line for name in CHOICES)
    assert convert("--method", "auto", "--rounds", "2", "--overwrite").returncode == 2


def test_auto_leaves_out_methods_that_lack_anchors(tmp_path: Path) -> None:
    pair = tmp_path / "source", tmp_path / "helper"
    write_pair(tmp_path, SHARED[:12])
    done = clpstream.convert(*pair, tmp_path / "few", method="auto")
    assert (done.report.chosen and done.report.chosen.method) == "knn"
    assert any("too few shared tokens to choose" in warning for warning in done.report.warnings)
    some = spaces(21, 5)
    found = choose(replace(some, helper=random_rows(30, 50, 1), source=random_rows(80, 50, 2)),
                   CHOICES, Progress())  # fmt: skip
    assert set(found) == {"knn", "clp", "ridge"} - {
        name for name in ("ridge", "clp", "knn") if METHODS[name]().fewest(50, 50) > 19
    }


def test_a_limit_sizes_the_blocks_and_changes_no_figure(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit given, or what the container has, if that is less than a conversion would take."""
    expected, given = clpstream.evaluate(*pair, repeats=1), set()
    measured = clpstream.evaluation.measure

    def noted(*arguments: Any) -> Any:
        given.add(memory.max_memory())
        return measured(*arguments)

    monkeypatch.setattr("clpstream.evaluation.measure", noted)
    found = clpstream.evaluate(*pair, repeats=1, max_memory=48 << 20)
    assert given and max(given) <= 48 << 20
    for one, other in zip(expected.methods, found.methods, strict=True):
        assert (one.method, one.mrr) == (other.method, other.mrr)
    given.clear()
    allowed = memory.resident_memory() + (100 << 20)
    monkeypatch.setattr("clpstream.memory.allowed_memory", lambda: allowed)
    clpstream.evaluate(*pair, repeats=1)
    assert given and max(given) <= 100 << 20
