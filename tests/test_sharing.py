"""Which shared tokens keep their source rows, and what the rows of the others are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make import TARGET_WORDS, metaspace, read_tensors, write_checkpoint, write_helper, write_source
from make import write_tokenizer as tokenizer

import clpstream
from clpstream import Align
from clpstream.transfer import NO_ANCHOR, Agreement, Table, agreement_of

EMBEDDINGS, HEAD, TABLE = "model.embed_tokens.weight", "lm_head.weight", "wte.weight"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SYMBOLS = ["!", "12", "—", " 7", "...", "==", " "]
WORDS = [f" w{number}x" for number in range(300)]
ONLY_OLD = [*(f" old{number}" for number in range(200)), "Haus"]
ONLY_NEW = [*(f" new{number}" for number in range(200)), " haus"]
OLD = ["</s>", *BYTES, *ONLY_OLD, *SYMBOLS, *WORDS]
NEW = ["</s>", *BYTES, *WORDS[::-1], *ONLY_NEW, *SYMBOLS]
SOURCE = {word: token for token, word in enumerate(OLD)}
TARGET = {word: token for token, word in enumerate(NEW)}
SHARED = [word for word in NEW if word in SOURCE]
NEVER = ["</s>", *BYTES, *SYMBOLS]
"""Tokens that are copied whatever their helper rows say."""
D_HELPER, D_SOURCE = 16, 24


@dataclass(frozen=True)
class Done:
    report: Any
    source: dict[str, np.ndarray]
    target: dict[str, np.ndarray]
    helper: np.ndarray

    def copied(self, name: str = EMBEDDINGS) -> set[str]:
        """Shared tokens whose rows are the source's, bit for bit."""
        return {
            word
            for word in SHARED
            if self.target[name][TARGET[word]].tobytes()
            == self.source[name][SOURCE[word]].tobytes()
        }

    def remade(self, name: str = EMBEDDINGS) -> set[str]:
        return set(SHARED) - self.copied(name)

    def numbers(self) -> tuple[int, int, int]:
        counts = self.report.counts
        assert counts.shared + counts.missing == counts.target == len(NEW)
        assert counts.shared == counts.copied + counts.remade
        return counts.copied, counts.remade, counts.missing


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Vocabularies that share half of their words: the helper's rows are the source's, turned."""
    generator = np.random.default_rng(1)
    known = generator.standard_normal((len(OLD) + len(ONLY_NEW), D_HELPER))
    latent = dict(zip([*OLD, *ONLY_NEW], known, strict=True))
    tables = {}
    for name in (EMBEDDINGS, HEAD):
        turn = np.linalg.qr(generator.standard_normal((D_SOURCE, D_HELPER)))[0].T
        rows = np.array([latent[word] for word in OLD]) @ turn
        tables[name] = (rows + 0.02 * generator.standard_normal(rows.shape)).astype("f4")
    tokenizer(tmp_path / "source", OLD[257:], "metaspace", byte_pieces=True)
    config = {"model_type": "llama", "vocab_size": len(OLD), "eos_token_id": 0}
    write_checkpoint(tmp_path / "source", tables, config)
    tokenizer(tmp_path / "helper", NEW[257:], "metaspace", byte_pieces=True)
    save_helper(tmp_path, np.array([latent[word] for word in NEW]))
    return tmp_path


def save_helper(place: Path, rows: np.ndarray) -> None:
    config = {"model_type": "gpt2", "vocab_size": len(NEW)}
    write_checkpoint(place / "helper", {TABLE: rows.astype("f4")}, config)


def helper_rows(place: Path) -> np.ndarray:
    return read_tensors(place / "helper")[TABLE]


def run(place: Path, name: str = "target", **arguments: Any) -> Done:
    result = clpstream.convert(place / "source", place / "helper", place / name, **arguments)
    found = [read_tensors(place / directory) for directory in ("source", name)]
    return Done(result.report, *found, helper_rows(place))


def swap(place: Path, words: list[str]) -> list[str]:
    """Let pairs of words have each other's helper row, which points elsewhere. Their names."""
    rows, left, swapped = helper_rows(place).astype("f8"), list(words), []
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    while len(left) > 1:
        one = left.pop()
        other = min(left, key=lambda word: units[TARGET[one]] @ units[TARGET[word]])
        if units[TARGET[one]] @ units[TARGET[other]] < -0.35:
            left.remove(other)
            swapped += [one, other]
    assert len(swapped) > len(words) / 2
    for one, other in zip(swapped[::2], swapped[1::2], strict=True):
        rows[[TARGET[one], TARGET[other]]] = rows[[TARGET[other], TARGET[one]]]
    save_helper(place, rows)
    return swapped


def test_copy_keeps_every_shared_row(place: Path) -> None:
    swap(place, WORDS[:40])
    done = run(place, shared="copy")
    assert done.remade() == done.remade(HEAD) == set()
    assert done.report.sharing is None
    assert done.numbers() == (len(SHARED), 0, len(ONLY_NEW))


def test_map_makes_words_and_copies_all_else(place: Path) -> None:
    done = run(place, shared="map")
    assert done.remade() == done.remade(HEAD) == set(WORDS)
    assert done.copied() == set(NEVER)
    assert done.numbers() == (len(NEVER), len(WORDS), len(ONLY_NEW))
    assert done.report.sharing.threshold is None
    assert len(done.report.sharing.remade) == 50


def test_auto_copies_all_words_on_which_the_models_agree(place: Path) -> None:
    done = run(place)
    assert done.remade() == done.remade(HEAD) == set()
    assert done.numbers() == (len(SHARED), 0, len(ONLY_NEW))
    assert done.report.sharing.remade == ()
    assert 0 < done.report.sharing.threshold < 0.5


@pytest.mark.parametrize("tied", [True, False])
def test_auto_makes_the_words_on_which_the_models_disagree(place: Path, tied: bool) -> None:
    """And only these: symbols and bytes with other rows are copied; both tables alike."""
    swapped = swap(place, WORDS[5:55])
    swap(place, [*SYMBOLS[:2], *BYTES[40:60]])
    if tied:
        tensors = read_tensors(place / "source")
        config = {"model_type": "llama", "vocab_size": len(OLD), "tie_word_embeddings": True}
        write_checkpoint(place / "source", {EMBEDDINGS: tensors[EMBEDDINGS]}, config)
    done = run(place)
    assert done.report.tied == tied
    assert done.target.keys() == done.source.keys()
    for name in done.target:
        assert done.remade(name) == set(swapped)
    assert done.numbers() == (len(SHARED) - len(swapped), len(swapped), len(ONLY_NEW))
    named = " ".join(done.report.sharing.remade)
    assert len(done.report.sharing.remade) == len(swapped)
    assert all(word in named for word in swapped)
    assert done.report.counts.anchors == len(SHARED)
    assert done.report.counts.not_carried == len(ONLY_OLD)


def test_an_output_head_tells_what_tokens_mean(place: Path) -> None:
    """Input embeddings that learned nothing don't make all words' rows anew."""
    swapped = swap(place, WORDS[5:55])
    tensors = read_tensors(place / "source")
    noise = np.random.default_rng(8).standard_normal(tensors[EMBEDDINGS].shape).astype("f4")
    config = {"model_type": "llama", "vocab_size": len(OLD), "eos_token_id": 0}
    write_checkpoint(place / "source", {EMBEDDINGS: noise, HEAD: tensors[HEAD]}, config)
    done = run(place)
    assert done.remade() == done.remade(HEAD) == set(swapped)


def test_a_source_that_was_trained_for_long_keeps_its_words(place: Path) -> None:
    """In such a one, tokens have others beside them that are used alike. What a small helper says
    of its words is worth less: only those that agree worse than chance are made."""
    words = [*OLD[257:], *(f" more{number}" for number in range(300))]
    tokenizer(place / "source", words, "metaspace", byte_pieces=True)
    save_helper(place, np.random.default_rng(2).standard_normal((len(NEW), D_HELPER)))
    rows = np.random.default_rng(3).standard_normal((257 + len(words), 96)).astype("f4")
    used_alike = rows[np.arange(len(rows)) // 2 * 2] + np.float32(0.1) * rows
    config = {"model_type": "llama", "vocab_size": len(rows), "eos_token_id": 0}
    for table, least, most in ((rows, 0.7, 1), (used_alike, 0.02, 0.3)):
        write_checkpoint(place / "source", {EMBEDDINGS: table}, config)
        made = clpstream.convert(
            place / "source", place / "helper", place / "target", overwrite=True
        ).report.counts.remade
        assert least < made / len(WORDS) < most


@pytest.mark.parametrize("name", [EMBEDDINGS, HEAD])
def test_a_remade_row_is_knn_s_without_its_own_anchor(place: Path, name: str) -> None:
    swapped = swap(place, WORDS[5:55])
    done = run(place, method="knn")
    helper = done.helper.astype("f8")
    anchors = [TARGET[word] for word in SHARED]
    source = done.source[name].astype("f8")[[SOURCE[word] for word in SHARED]]
    units = helper - helper[anchors].mean(axis=0)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    for word in [*swapped, *ONLY_NEW]:
        scores = units[anchors] @ units[TARGET[word]]
        if word in SHARED:
            scores[SHARED.index(word)] = -9
        nearest = np.argsort(-scores)[:10]
        weights = np.exp(scores[nearest] / 0.1)
        expected = weights @ source[nearest] / weights.sum()
        assert np.allclose(done.target[name][TARGET[word]], expected, atol=1e-5)


def test_a_remade_row_is_what_the_method_gives(place: Path) -> None:
    swapped = swap(place, WORDS[5:55])
    done = run(place)
    made = sorted(TARGET[word] for word in [*swapped, *ONLY_NEW])
    own = [SHARED.index(NEW[t]) if NEW[t] in SHARED else NO_ANCHOR for t in made]
    anchors = done.helper[[TARGET[word] for word in SHARED]]
    words = [token for word, token in SOURCE.items() if word in [*WORDS, *ONLY_OLD]]
    shared = [SOURCE[word] for word in SHARED]
    prepared = Align().prepare(anchors, done.helper[made], np.array(own))
    rows = Align().together(
        [
            Table(prepared, done.source[name][shared], done.source[name][words])
            for name in (EMBEDDINGS, HEAD)
        ]
    )
    for name, expected in zip((EMBEDDINGS, HEAD), rows, strict=True):
        assert np.allclose(done.target[name][made], expected[:], atol=1e-5)


def test_a_source_with_one_table_learns_from_both_of_the_helper_s(place: Path) -> None:
    """Rows follow the helper's head; which tokens mean the same, its input embeddings tell too."""
    swap(place, WORDS[5:55])
    rows = helper_rows(place)
    noise = np.random.default_rng(3).standard_normal(rows.shape)
    tables = (rows[:, ::-1] + 0.4 * noise).astype("f4"), rows
    config = {"model_type": "llama", "vocab_size": len(OLD), "tie_word_embeddings": True}
    source = read_tensors(place / "source")[EMBEDDINGS]
    write_checkpoint(place / "source", {EMBEDDINGS: source}, config)
    helper = {HEAD: tables[0], TABLE: tables[1]}
    write_checkpoint(place / "helper", helper, {"model_type": "gpt2", "vocab_size": len(NEW)})
    done = run(place)

    shared, places = ([ids[word] for word in SHARED] for ids in (SOURCE, TARGET))
    agreement = Agreement.mean(agreement_of(table[places], source[shared]) for table in tables)
    unsure = np.array([word in WORDS for word in SHARED])
    threshold = agreement.threshold(unsure)
    assert done.report.sharing.threshold == pytest.approx(threshold, abs=1e-4)
    remade = unsure & (agreement.of_pairs < threshold)
    assert done.remade() == set(np.array(SHARED)[remade])
    made = sorted(TARGET[word] for word in [*np.array(SHARED)[remade], *ONLY_NEW])
    own = [SHARED.index(NEW[t]) if NEW[t] in SHARED else NO_ANCHOR for t in made]
    words = source[[token for word, token in SOURCE.items() if word in [*WORDS, *ONLY_OLD]]]
    given = [
        Table(Align().prepare(table[places], table[made], np.array(own)), source[shared], words)
        for table in tables
    ]
    expected, alone = (next(Align().together(some))[:] for some in (given, given[:1]))
    assert np.allclose(done.target[EMBEDDINGS][made], expected, atol=1e-5)
    assert not np.allclose(alone, expected, atol=1e-5)


def test_a_remade_row_is_where_the_helper_says(place: Path) -> None:
    """Words that were swapped in the helper get each other's place in the source."""
    swapped = swap(place, WORDS[5:55])
    done = run(place)
    for one, other in zip(swapped[::2], swapped[1::2], strict=True):
        for word, place_of in ((one, other), (other, one)):
            made = done.target[EMBEDDINGS][TARGET[word]]
            there = done.source[EMBEDDINGS][SOURCE[place_of]]
            assert made @ there > 0.95 * np.linalg.norm(made) * np.linalg.norm(there)


@pytest.mark.parametrize("shared", ["auto", "map"])
def test_tokens_that_the_user_maps_are_copied(place: Path, shared: str) -> None:
    one, other, *_ = swap(place, WORDS[5:55])
    pairs = {metaspace(one): metaspace(one), metaspace(other): metaspace(WORDS[50])}
    done = run(place, shared=shared, map_tokens=pairs)
    for name in (EMBEDDINGS, HEAD):
        for word, by in ((one, one), (other, WORDS[50])):
            row = done.source[name][SOURCE[by]]
            assert done.target[name][TARGET[word]].tobytes() == row.tobytes()


def test_a_fuzzy_match_is_copied(place: Path) -> None:
    done = run(place, shared="map", match="fuzzy")
    row = done.source[EMBEDDINGS][SOURCE["Haus"]]
    assert done.target[EMBEDDINGS][TARGET[" haus"]].tobytes() == row.tobytes()
    assert done.remade() == set(WORDS)
    assert sum(done.report.counts.rules.values()) == len(SHARED) + 1


@pytest.mark.parametrize("shared", ["auto", "map"])
def test_the_same_bytes_again(place: Path, shared: str) -> None:
    swap(place, WORDS[5:55])
    first, second = (run(place, name, shared=shared) for name in ("one", "two"))
    assert first.report == second.report
    files = [sorted((place / name).iterdir()) for name in ("one", "two")]
    for one, two in zip(*files, strict=True):
        assert (one.name, one.read_bytes()) == (two.name, two.read_bytes())


def test_few_shared_tokens_are_all_copied(tmp_path: Path) -> None:
    """31 of them can't tell how a space of 32 dimensions lies in another one."""
    write_source(tmp_path / "source", width=32)
    write_helper(tmp_path / "helper", [*TARGET_WORDS, *ONLY_NEW], width=32)
    both = clpstream.convert(tmp_path / "source", tmp_path / "helper", tmp_path / "auto").report
    assert any("too few shared tokens to tell" in warning for warning in both.warnings)
    assert any("too few anchors" in warning for warning in both.warnings)
    assert (both.sharing, both.counts.remade) == (None, 0)
    clpstream.convert(tmp_path / "source", tmp_path / "helper", tmp_path / "copy", shared="copy")
    auto, copy = read_tensors(tmp_path / "auto"), read_tensors(tmp_path / "copy")
    assert all((auto[name] == copy[name]).all() for name in copy)
    knn = clpstream.convert(
        tmp_path / "source", tmp_path / "helper", tmp_path / "knn", method="knn", shared="copy"
    )
    assert not any("too few" in warning for warning in knn.report.warnings)


def test_a_dry_run_decides_nothing(place: Path) -> None:
    target = place / "target"
    report = clpstream.convert(place / "source", place / "helper", target, dry_run=True).report
    assert (report.sharing, report.counts.remade, report.counts.copied) == (None, None, None)
    assert report.counts.shared == len(SHARED)


def test_a_vocabulary_that_is_extended_keeps_its_rows(place: Path) -> None:
    """The source's tokens, and more: they go on meaning what they did, whatever the helper says."""
    save_helper(place, np.random.default_rng(2).standard_normal((len(NEW), D_HELPER)))
    assert run(place).report.counts.remade > 100
    tokenizer(place / "extended", [*OLD[257:], *ONLY_NEW], "metaspace", byte_pieces=True)
    report = clpstream.convert(
        place / "source",
        place / "helper",
        place / "more",
        tokenizer=place / "extended",
    ).report
    assert (report.counts.copied, report.counts.remade) == (len(OLD), 0)
    assert (report.counts.missing, report.options["shared"]) == (len(ONLY_NEW), "copy")
    before, after = read_tensors(place / "source"), read_tensors(place / "more")
    for name in (EMBEDDINGS, HEAD):
        assert after[name][: len(OLD)].tobytes() == before[name].tobytes()


def test_words_of_one_language_keep_their_rows_whatever_the_helper_says(place: Path) -> None:
    """Here the source has nine in ten of the target's words."""
    few = [*NEW[257 : 257 + len(WORDS)], *ONLY_NEW[:30]]
    tokenizer(place / "helper", few, "metaspace", byte_pieces=True)
    rows = np.random.default_rng(2).standard_normal((257 + len(few), D_HELPER)).astype("f4")
    config = {"model_type": "gpt2", "vocab_size": len(rows)}
    write_checkpoint(place / "helper", {TABLE: rows}, config)
    report = run(place).report
    assert (report.counts.remade, report.counts.missing) == (0, 30)
    assert (report.options["shared"], report.sharing) == ("copy", None)
    assert run(place, "map", shared="map").report.counts.remade == len(WORDS)


def test_words_of_another_script_are_judged_by_themselves(place: Path) -> None:
    """Latin words, which are all shared, keep their rows; Cyrillic ones, half of them, don't."""
    latin, common = [f" w{number}" for number in range(300)], [f" ж{n}" for n in range(150)]
    sizes = {}
    for name, letter in (("source", "л"), ("helper", "н")):
        words = [*latin, *common, *(f" {letter}{number}" for number in range(150))]
        tokenizer(place / name, words, "metaspace", byte_pieces=True)
        sizes[name] = 257 + len(words)
    generator = np.random.default_rng(2)
    tables = {TABLE: generator.standard_normal((sizes["helper"], D_HELPER)).astype("f4")}
    write_checkpoint(
        place / "helper", tables, {"model_type": "gpt2", "vocab_size": sizes["helper"]}
    )
    tables = {EMBEDDINGS: generator.standard_normal((sizes["source"], D_SOURCE)).astype("f4")}
    write_checkpoint(place / "source", tables, {"model_type": "llama", "tie_word_embeddings": True})
    report = run(place).report
    assert 100 < report.counts.remade <= len(common)
    assert all("ж" in word for word in report.sharing.remade)


def test_a_method_that_reads_no_helper_copies(place: Path) -> None:
    report = run(place, method="mean").report
    assert (report.options["shared"], report.counts.copied) == ("copy", len(SHARED))


@pytest.mark.parametrize("match", ["bytes", "exact"])
def test_clp_with_copies_is_the_paper(place: Path, match: Any) -> None:
    """CLP-Transfer: each missing row is the mean of all shared ones, weighted by cosine."""
    generator = np.random.default_rng(2)
    save_helper(place, generator.standard_normal((len(NEW), D_HELPER)) + 1)
    done = run(place, method="clp", shared="copy", match=match)
    units = done.helper.astype("f8")
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    cosines = units[[TARGET[w] for w in ONLY_NEW]] @ units[[TARGET[w] for w in SHARED]].T
    weights = cosines / cosines.sum(axis=1, keepdims=True)
    assert done.remade() == set()
    for name in (EMBEDDINGS, HEAD):
        rows = done.source[name].astype("f8")[[SOURCE[word] for word in SHARED]]
        made = done.target[name][[TARGET[word] for word in ONLY_NEW]]
        assert np.allclose(made, weights @ rows, atol=1e-5)
