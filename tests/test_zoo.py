"""Every architecture of transformers that will build: converted, loaded again, and run.

No test here knows a tensor's name. The truth is the same architecture built at the target's
vocabulary size: its file says what shape each tensor of the target must have, and the tensors whose
shape differs are the vocabulary tensors. Which rows must be copies follows from the word lists.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make import read_json, read_tensors, write_helper, write_json, write_tokenizer
from plain import convert

import clpstream

_WHY = "needs the interop extra: pip install 'clpstream[interop]'"
torch = pytest.importorskip("torch", reason=_WHY)
transformers = pytest.importorskip("transformers", reason=_WHY)

import zoo  # noqa: E402

pytestmark = pytest.mark.interop

ROWS, TARGET_ROWS = 331, 353
"""Primes, so that no other dimension of a model is equal to them."""
FIXED = range(5)
"""Tokens with the same id in both: the pad token's id is where some models count positions from."""
SHARED = [*range(5, 80), *range(250, ROWS)]
"""Source tokens that have another id in the target, among them all that the zoo's configs name."""
TARGET_OF = {token: token for token in FIXED} | {
    token: 5 + 2 * place for place, token in enumerate(reversed(SHARED))
}
"""Target token by source token. Token 0 is special."""
SOURCE_OF = {target: token for token, target in TARGET_OF.items()}
SOURCE_WORDS = [f" shared{n}" if n in TARGET_OF else f" old{n}" for n in range(1, ROWS)]
TARGET_WORDS = [f" shared{SOURCE_OF[n]}" if n in SOURCE_OF else f" new{n}"
                for n in range(1, TARGET_ROWS)]  # fmt: skip

TEXT = [5, 17, 33, 79, 260, 11, 23, 42]
"""A text of shared tokens, none of which a config names."""

REFUSED = {"molmo2": "new_embedding"}
"""What the error must say, by species: that vocabulary stands in two tables."""

BY_NUMBER = {"blt", "qwen4_exp_text"}
"""Species that hash token ids, so that a token with another id is another token to them."""

LOGITS = ("logits", "prediction_logits", "mlm_logits", "lm_logits")
"""Names of what has one number for each token of the vocabulary, in what models return."""

PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys")

SPECIES = zoo.species()


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("zoo") / "helper"
    ids = write_helper(directory, TARGET_WORDS)
    assert len(ids) == TARGET_ROWS
    return directory


def build(name: str, rows: int) -> Any:
    try:
        return zoo.build(SPECIES[name], rows)
    except Exception as error:
        pytest.skip(f"transformers {transformers.__version__} does not build it: {error}")


def load(name: str, directory: Path) -> tuple[Any, dict[str, Any]]:
    made = zoo.model_class(SPECIES[name])
    if hasattr(made, "load_speakers"):  # can't tell how it loaded, and won't load without voices
        torch.save({}, directory / "spk_dict.pt")
        return made.from_pretrained(directory).eval(), {problem: set() for problem in PROBLEMS}
    model, info = made.from_pretrained(directory, output_loading_info=True)
    return model.eval(), info


def run(name: str, model: Any, tokens: list[int]) -> Any:
    """Logits of a text, or the last hidden states of a model without a head."""
    model_type = SPECIES[name].model_type
    if model_type in zoo.TEXT_PART:
        model = operator.attrgetter(zoo.TEXT_PART[model_type])(model)
    wanted = inspect.signature(model.forward).parameters
    ids = torch.tensor([tokens])
    inputs: dict[str, Any] = {"use_cache": False} if "use_cache" in wanted else {}
    inputs |= {part: ids for part in ("input_ids", "decoder_input_ids") if part in wanted}
    if model_type in zoo.MORE_INPUTS:
        inputs |= zoo.MORE_INPUTS[model_type](ids)
    with torch.no_grad():
        found = model(**inputs)
    for part in LOGITS:
        if found.get(part) is not None:
            return found[part]
    return found[0]


@pytest.mark.parametrize("name", SPECIES)
def test_every_architecture(name: str, helper: Path, tmp_path: Path) -> None:
    source, truth, target = (tmp_path / part for part in ("source", "truth", "target"))
    build(name, ROWS).save_pretrained(source)
    build(name, TARGET_ROWS).save_pretrained(truth)
    assert len(write_tokenizer(source, SOURCE_WORDS)) == ROWS
    if name in REFUSED:
        with pytest.raises(clpstream.ClpstreamError, match=REFUSED[name]):
            convert(source, helper, target)
        return
    result = convert(source, helper, target)
    by_number = any("hashes of token ids" in warning for warning in result.report.warnings)
    assert by_number == (name in BY_NUMBER)

    before, expected, after = (read_tensors(part) for part in (source, truth, target))
    assert after.keys() == expected.keys()
    for tensor in expected:
        assert after[tensor].shape == expected[tensor].shape, tensor
        assert after[tensor].dtype == expected[tensor].dtype, tensor
    vocabulary = {tensor for tensor in before if before[tensor].shape != expected[tensor].shape}
    assert vocabulary
    for tensor in before:
        if tensor in vocabulary:
            check_rows(before[tensor], after[tensor])
        else:
            assert np.array_equal(bits(before[tensor]), bits(after[tensor])), tensor

    old_model, old_info = load(name, source)
    new_model, new_info = load(name, target)
    for problem in PROBLEMS:
        assert set(new_info[problem]) <= set(old_info[problem]), problem
    check_logits(name, old_model, new_model, TARGET_OF, TARGET_ROWS)
    assert torch.isfinite(run(name, new_model, [*range(TARGET_ROWS - 8, TARGET_ROWS)])).all()


def test_most_architectures_build() -> None:
    """Else the test above passes by skipping."""
    built = 0
    for kind in SPECIES.values():
        with contextlib.suppress(Exception):
            zoo.check_small(kind, ROWS)
            built += 1
    assert built >= 150


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "longformer", "esm", "xglm"])
def test_another_pad_token_moves_no_position(name: str, tmp_path: Path) -> None:
    """These count positions from the pad token's id, which is another one in the target."""
    source, helper, target = (tmp_path / part for part in ("source", "helper", "target"))
    build(name, ROWS).save_pretrained(source)
    write_tokenizer(source, SOURCE_WORDS)
    special = {"eos": "</s>", "bos": "<s>", "unk": "<unk>", "cls": "<cls>", "pad": "<pad>"}
    write_helper(helper, TARGET_WORDS, special=special)
    convert(source, helper, target)
    target_of = {0: 0} | {token: new + 4 for token, new in TARGET_OF.items() if token}
    old_model, new_model = load(name, source)[0], load(name, target)[0]
    check_logits(name, old_model, new_model, target_of, TARGET_ROWS + 4)


@pytest.mark.parametrize("name", ["modernbert-decoder", "nomic_bert", "gemma4", "led"])
def test_a_target_without_tokens_that_a_class_needs(
    name: str, helper: Path, tmp_path: Path
) -> None:
    """Classes that can't be loaded or run with null for an id; the helper has only an eos token."""
    source, target = tmp_path / "source", tmp_path / "target"
    build(name, ROWS).save_pretrained(source)
    write_tokenizer(source, SOURCE_WORDS)
    config = read_json(source / "config.json")
    lost = next(token for token in range(ROWS) if token not in TARGET_OF)
    write_json(source / "config.json", config | {"pad_token_id": lost, "bos_token_id": lost})
    convert(source, helper, target)
    model = load(name, target)[0]
    assert torch.isfinite(run(name, model, [TARGET_OF[token] for token in TEXT])).all()


def bits(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(array.tobytes(), np.uint8)


def check_rows(before: np.ndarray, after: np.ndarray) -> None:
    """Rows of shared tokens, and rows after the vocabulary's, are copies; all are finite."""
    (axis,) = (i for i, size in enumerate(before.shape) if size != after.shape[i])
    before, after = np.moveaxis(before, axis, 0), np.moveaxis(after, axis, 0)
    assert np.array_equal(bits(before[list(TARGET_OF)]), bits(after[list(TARGET_OF.values())]))
    assert np.array_equal(bits(before[ROWS:]), bits(after[TARGET_ROWS:]))
    assert np.isfinite(after.astype(np.float64)).all()
    new = [token for token in range(TARGET_ROWS) if token not in SOURCE_OF]
    assert len(np.unique(after[new], axis=0)) > 1


def check_logits(
    name: str, old_model: Any, new_model: Any, target_of: dict[int, int], rows: int
) -> None:
    """A text of shared tokens means the same to both, and so does each shared token as the next."""
    old = run(name, old_model, TEXT)
    new = run(name, new_model, [target_of[token] for token in TEXT])
    if old.shape[-1] >= ROWS:
        assert new.shape[-1] - old.shape[-1] == rows - ROWS
        old, new = old[..., list(target_of)], new[..., list(target_of.values())]
    assert old.shape == new.shape
    assert torch.isfinite(old).all()
    assert name in BY_NUMBER or torch.allclose(old, new, atol=1e-4, rtol=1e-3)
