"""config.json and generation_config.json of the target: the source's, with another vocabulary."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from clpstream.checkpoint import VOCABULARY_SIZE, is_near, sizes_in, stated_sizes
from clpstream.inputs import LANGUAGE_LEVELS
from clpstream.vocabulary import ROLES

_TOKEN_KEY = re.compile(
    r"(?:(?P<role>(?!code(?:c|book)_)\w+)_)?token_(?:id|ids|index)"
    r"|(?P<old_role>bos|eos|pad|unk|mask)_index"  # xlm, flaubert
    r"|(?:image|slice)_(?:start|end|patch)_id|im_(?:start|end|newline)_id|newline_id"
)
"""Keys that hold token ids; molmo, minicpm-v and hunyuan-vl leave out that they are of tokens. A
codec's (csm, the talker of qwen3-omni) are of sounds."""
_LISTS = ("suppress_tokens", "begin_suppress_tokens")
"""Lists of token ids whose names don't say so."""
_SETS = (*ROLES, "stop")
"""Roles of lists in which places mean nothing; they do in others (visual_indicator, of ovis2)."""
_OFFSETS = ("vocab_offset",)
"""Where the ids of a part with a vocabulary of its own begin (gemma3n: images, sound)."""
_BY_NAME = ("vocabulary_map", "lang_to_id", "task_to_id")
"""Token ids by name (chameleon: the tokens of images, which are never written; whisper)."""
_STRUCTURES = ("bad_words_ids", "force_words_ids", "forced_decoder_ids", "sequence_bias")
"""Token ids in structures that only a person can carry over."""
_POSITIONS_FROM_PAD = (
    *("altclip_text_model", "bridgetower_text_model", "camembert", "clap_text_model"),
    *("data2vec-text", "esm", "fsmt", "ibert", "kosmos_2_text_model", "kosmos_2_5_text_model"),
    *("layoutlmv3", "lilt", "longformer", "luke", "m2m_100", "markuplm", "mpnet", "nllb-moe"),
    *("prophetnet", "roberta", "roberta-prelayernorm", "seamless_m4t", "seamless_m4t_v2"),
    *("speech_to_text", "speecht5", "trocr", "xglm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
"""Model types whose first position is pad_token_id + 1, or whose table of positions has a row for
it: the id belongs to the weights and not to the tokenizer."""
_CLASS_DEFAULTS = ("bos", "eos", "pad")
"""Ids for which many config classes have defaults, of the vocabulary their authors used."""
_INSTEAD = {
    "bos": ("cls", "eos", "sep"),
    "eos": ("sep",),
    "pad": ("unk", "eos", "sep"),
    "unk": ("pad", "eos", "sep"),
    "cls": ("bos", "eos"),
    "sep": ("eos",),
    "mask": ("unk", "pad", "eos", "sep"),
}
"""By role: whose id stands where the target has no such token. Null would be plainer, but where a
source has an id many classes can't be loaded or run without one (modernbert-decoder, gemma4)."""
_END_IS_LARGEST = re.compile(r"(?:owlvit|owlv2|xclip|sam3_lite_text)(?:_text_model)?")
"""Model types that take a text's largest token id for its end, whatever config.json says."""
_END_IS_LARGEST_IF_TWO = re.compile(r"(?:clip|clipseg|groupvit)(?:_text_model)?")
"""Those that do so where eos_token_id is 2, which was in config.json by mistake once."""
_GENERATES = re.compile("CausalLM|LMHead|Generation|Seq2Seq")
"""In the names of architectures that write text, and take several eos tokens."""


@dataclass
class Retarget:
    """Rewrites vocabulary sizes and token ids in the source's configs, at every nesting level.

    rows, old_rows: the target's and the source's vocabulary size, rows for padding included.
    sizes: other numbers that mean a size of the source's vocabulary, and what they become.
    roles: target token ids by role (bos, eos, ...).
    targets_of: target ids, lowest first, of each source token that the target has. They are several
        where the source has one token for bos and eos, and the target two.
    special: target ids of special tokens.
    largest: the target's largest token id.
    warnings: filled with what could not be carried over.
    """

    rows: int
    old_rows: int
    sizes: Mapping[int, int]
    roles: Mapping[str, int]
    targets_of: Mapping[int, tuple[int, ...]]
    special: Collection[int]
    largest: int
    warnings: list[str] = field(default_factory=list)

    def config(
        self, config: Mapping[str, Any], tokenizer_class: str | None, alone: bool
    ) -> dict[str, Any]:
        """The target's config.json; `alone` if no generation_config.json goes with it, so that a
        model that writes text takes from here what it stops at.

        The level that holds vocab_size also gets explicit bos, eos and pad ids: an id left out
        would take its class's default, which belongs to another vocabulary. `tokenizer_class` is
        named in it if given: transformers looks there when tokenizer_config.json is silent.
        """
        known = {*self.sizes, self.old_rows}
        # a model of sound may state the text's size under another key (csm), and its own as this
        named = any(size.key != "vocab_size" and size.value in known for size in sizes_in(config))
        stated = [n for n in stated_sizes(config) if not named or is_near(n, self.old_rows)]
        sizes = dict.fromkeys(stated, self.rows) | dict(self.sizes) | {self.old_rows: self.rows}
        new = self._level(config, "config.json", sizes, all_stops=alone and _generates(config))
        levels = [level for level in _levels(new) if _has_size(level, sizes.values())]
        if not levels:  # left out where it is the class's default
            inner = [level for key in LANGUAGE_LEVELS if isinstance(level := new.get(key), dict)]
            levels = [*inner, new][:1]
            levels[0]["vocab_size"] = self.rows
        for level in levels:
            for role in _CLASS_DEFAULTS:
                if role == "pad" and level.get("model_type") in _POSITIONS_FROM_PAD:
                    continue
                if level.get(f"{role}_token_id") is None:
                    level[f"{role}_token_id"] = self.roles.get(role)
        if isinstance(new.get("auto_map"), dict):
            new["auto_map"].pop("AutoTokenizer", None)  # the source's, whose code is left behind
        if tokenizer_class is not None:
            new["tokenizer_class"] = tokenizer_class
        else:
            new.pop("tokenizer_class", None)
        return new

    def generation_config(
        self, generation: Mapping[str, Any], config: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The target's generation_config.json. config: the source's config.json."""
        decoder = config.get("decoder")
        size = decoder.get("vocab_size") if isinstance(decoder, dict) else None
        if type(size) is int and not is_near(size, self.old_rows):
            self.warnings.append(
                "generation_config.json: kept as it is: what it is about, the decoder, has a "
                "vocabulary of its own"
            )
            return dict(generation)
        return self._level(generation, "generation_config.json", self.sizes, all_stops=True)

    def _level(
        self, level: Mapping[str, Any], path: str, sizes: Mapping[int, int], all_stops: bool
    ) -> dict[str, Any]:
        if _is_foreign(level, sizes):
            return {key: self._behind(n) if key in _OFFSETS else n for key, n in level.items()}
        new: dict[str, Any] = {}
        for key, value in level.items():
            where = f"{path}: {key}"
            if key == "pad_token_id" and level.get("model_type") in _POSITIONS_FROM_PAD:
                self.warnings.append(
                    f"{where}: {value} is kept: a {level['model_type']} counts positions from it, "
                    "and takes that token for padding whatever it is in the target"
                )
                new[key] = value
            elif key in _STRUCTURES and value:
                self.warnings.append(f"{where}: has token ids of the source; change it by hand")
                new[key] = value
            elif key in _BY_NAME and isinstance(value, dict):
                new[key] = self._by_name(value, where)
            elif isinstance(value, dict):
                new[key] = self._level(value, where, sizes, all_stops)
            elif VOCABULARY_SIZE.fullmatch(key) and type(value) is int and value in sizes:
                new[key] = sizes[value]
            elif key in _LISTS:
                new[key] = self._ids(value, None, where)
            elif match := _TOKEN_KEY.fullmatch(key):
                role = match["role"] or match["old_role"]
                new[key] = self._ids(value, role, where)
                if all_stops and role == "eos":
                    new[key] = self._every_stop(value, new[key], where)
            else:
                new[key] = value
        self._check_end(new, path)
        return new

    def _check_end(self, level: Mapping[str, Any], path: str) -> None:
        """Warn of a text encoder that won't find the end of a text."""
        kind, end = str(level.get("model_type")), self.roles.get("eos")
        by_number = _END_IS_LARGEST.fullmatch(kind) or (
            _END_IS_LARGEST_IF_TWO.fullmatch(kind) and level.get("eos_token_id") == 2
        )
        if by_number and end != self.largest and "text_config" not in level:
            self.warnings.append(
                f"{path}: a {kind} takes the largest token id of a text for its end, and the "
                f"target's eos token is {end} of {self.largest + 1}: what it makes of whole texts "
                "is wrong; take a tokenizer whose eos token has the largest id"
            )

    def _ids(self, value: Any, role: str | None, where: str) -> Any:
        if type(value) is int:
            return self._id(value, role, where)
        if isinstance(value, list) and all(type(item) is int for item in value):
            if role is None or role in _SETS:
                return self._set(value, role, where)
            return [self._id(item, role, where) for item in value]
        if value is not None:
            self.warnings.append(f"{where}: {value!r} is no token id; change it by hand")
        return value

    def _id(self, value: int, role: str | None, where: str) -> int | None:
        if role is not None and role in self.roles:
            return self.roles[role]
        if value in self.targets_of:
            return self.targets_of[value][0]
        moved: int = self._behind(value)
        if moved != value:
            self.warnings.append(
                f"{where}: {value} is behind the source's vocabulary; it is {moved} now, behind "
                "the target's"
            )
            return moved
        if role in ROLES:
            return self._instead(role, where)
        self.warnings.append(
            f"{where}: token {value} is not in the target vocabulary; left as it is, decide by hand"
        )
        return value

    def _instead(self, role: str, where: str) -> int | None:
        """An id for a role that the target does not have."""
        other = next((other for other in _INSTEAD[role] if other in self.roles), None)
        found = None if other is None else self.roles[other]
        said = "null" if other is None else f"{found}, its {other} token"
        self.warnings.append(f"{where}: the target tokenizer has no {role} token: {said}")
        return found

    def _behind(self, value: Any) -> Any:
        """An id or offset behind the source's vocabulary, where it is behind the target's."""
        is_behind = type(value) is int and self.old_rows <= value < max(self.sizes)
        return value - self.old_rows + self.rows if is_behind else value

    def _set(self, values: list[int], role: str | None, where: str) -> list[int] | None:
        """Ids whose places in the list mean nothing: those that are lost are left out."""
        kept = [self.targets_of[value][0] for value in values if value in self.targets_of]
        if role is not None and role in self.roles:
            kept.insert(0, self.roles[role])
        kept = list(dict.fromkeys(kept))
        if not kept and values and role in ROLES:  # generate() fails on an empty list
            found = self._instead(role, where)
            return None if found is None else [found]
        lost = [value for value in values if value not in self.targets_of]
        if lost:
            self.warnings.append(
                f"{where}: the source's tokens {lost} are not in the target vocabulary and were "
                f"dropped; it is {kept} now"
            )
        return kept

    def _by_name(self, ids: Mapping[str, Any], where: str) -> dict[str, Any]:
        found = {name: self.targets_of.get(n) for name, n in ids.items() if type(n) is int}
        kept = {name: targets[0] for name, targets in found.items() if targets}
        if len(kept) < len(ids):
            self.warnings.append(
                f"{where}: {len(ids) - len(kept):,} of its {len(ids):,} tokens are not in the "
                "target vocabulary and were dropped"
            )
        return kept

    def _every_stop(self, old: Any, new: Any, where: str) -> Any:
        """All tokens that have the row of a stop token stop: their logits are equal."""
        before, first = (ids if isinstance(ids, list) else [ids] for ids in (old, new))
        if not all(type(token) is int for token in (*before, *first)):
            return new
        stops = [
            token
            for value in before
            for token in self.targets_of.get(value, ())
            if token in self.special
        ]
        every = list(dict.fromkeys([*first, *stops]))
        if len(every) == len(first):
            return new
        self.warnings.append(
            f"{where}: {every}: each of these stops, since tokens with the row of one of the "
            "source's eos tokens do"
        )
        return every


def _generates(config: Mapping[str, Any]) -> bool:
    """Whether a model writes text, as far as config.json tells."""
    names = config.get("architectures") or ["ForCausalLM"]
    return any(_GENERATES.search(str(name)) for name in names)


def _is_foreign(level: Mapping[str, Any], sizes: Collection[int]) -> bool:
    """Whether a level of config.json is that of another vocabulary, with its own ids."""
    return type(level.get("vocab_size")) is int and not _has_size(level, sizes)


def _has_size(level: Mapping[str, Any], sizes: Collection[int]) -> bool:
    """Whether a level of config.json holds one of these as a size of a vocabulary."""
    return any(VOCABULARY_SIZE.fullmatch(key) and n in sizes for key, n in level.items())


def _levels(config: dict[str, Any]) -> list[dict[str, Any]]:
    inner = [value for value in config.values() if isinstance(value, dict)]
    return [config, *(level for value in inner for level in _levels(value))]
