"""config.json and generation_config.json of the target."""

from __future__ import annotations

import pytest
from make import TARGET_WORDS, read_json, write_helper, write_json, write_source

import clpstream
from clpstream.output.config import Retarget

SIZE = 1 + len(TARGET_WORDS)


def retarget(**changes):
    settings = {
        "rows": 500,
        "old_rows": 1000,
        "sizes": {1000: 500},
        "roles": {"bos": 1, "eos": 2, "unk": 0},
        "targets_of": {11: (1,), 12: (2,), 77: (33,)},
        "special": {0, 1, 2},
        "largest": 499,
    }
    return Retarget(**settings | changes)


def test_vocabulary_size_and_ids_change_at_every_level_and_nothing_else():
    made = retarget()
    config = made.config(
        {
            "architectures": ["XForConditionalGeneration"],
            "eos_token_id": 12,
            "hidden_size": 1000,
            "image_token_index": 77,
            "text_config": {
                "vocab_size": 1000,
                "bos_token_id": 11,
                "rope": {"theta": 1e6, "forced_bos_token_id": 11},
            },
            "vision_config": {"vocab_size": 32, "image_size": 1000},
        },
        None,
        alone=False,
    )
    assert config == {
        "architectures": ["XForConditionalGeneration"],
        "eos_token_id": 2,
        "hidden_size": 1000,
        "image_token_index": 33,
        "text_config": {
            "vocab_size": 500,
            "bos_token_id": 1,
            "rope": {"theta": 1e6, "forced_bos_token_id": 1},
            "eos_token_id": 2,
            "pad_token_id": None,
        },
        "vision_config": {"vocab_size": 32, "image_size": 1000},
    }
    assert made.warnings == []


def test_keys_keep_their_order():
    config = retarget().config({"z": 1, "vocab_size": 1000, "a": 2, "eos_token_id": 9}, None, False)
    assert list(config) == ["z", "vocab_size", "a", "eos_token_id", "bos_token_id", "pad_token_id"]


def test_ids_left_to_class_defaults_are_made_explicit():
    """A Llama config without eos_token_id means 2, whatever token that is now."""
    config = retarget(roles={"eos": 7}).config({"vocab_size": 1000}, None, False)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (
        None,
        7,
        None,
    )


def test_a_list_of_stop_tokens_stays_a_list_and_names_what_it_lost():
    made = retarget()
    config = made.generation_config({"eos_token_id": [12, 77, 99], "temperature": 0.6}, {})
    assert config == {"eos_token_id": [2, 33], "temperature": 0.6}
    assert len(made.warnings) == 1
    assert "99" in made.warnings[0]
    assert "generation_config.json: eos_token_id" in made.warnings[0]


def test_a_list_of_stop_tokens_that_are_all_lost_is_null_and_not_empty():
    """transformers' generate() fails on an empty list."""
    made = retarget(roles={})
    assert made.generation_config({"eos_token_id": [98, 99], "suppress_tokens": [99]}, {}) == {
        "eos_token_id": None,
        "suppress_tokens": [],
    }
    assert "no eos token" in made.warnings[0]


@pytest.mark.parametrize("part", ["text_config", "llm_config", "language_config", "thinker_config"])
def test_a_language_model_inside_has_its_ids_changed_although_its_size_is_out_of_date(part):
    """Tokens were added, and vocab_size was not: it is not as long as the tables."""
    made = retarget().config({part: {"vocab_size": 995, "eos_token_id": 99}}, None, False)
    assert made[part]["vocab_size"] == 500
    assert made[part]["eos_token_id"] == 2
    assert "vocab_size" not in made
    made = retarget().config({part: {"hidden_size": 8}}, None, False)
    assert made[part]["vocab_size"] == 500


def test_every_token_with_the_row_of_the_stop_token_stops():
    """The source has one token for bos and eos: its logits would be shared by two."""
    shared = {"targets_of": {12: (1, 2)}}
    made = retarget(**shared)
    assert made.generation_config({"eos_token_id": 12, "bos_token_id": 12}, {}) == {
        "eos_token_id": [2, 1],
        "bos_token_id": 1,
    }
    assert "eos" in made.warnings[0]
    plain = retarget(targets_of={12: (2, 40)}).generation_config({"eos_token_id": 12}, {})
    assert plain == {"eos_token_id": 2}  # 40 is text
    config = {"vocab_size": 1000, "eos_token_id": 12}
    assert retarget(**shared).config(config, None, alone=False)["eos_token_id"] == 2
    assert retarget(**shared).config(config, None, alone=True)["eos_token_id"] == [2, 1]


@pytest.mark.parametrize(
    ("architectures", "eos"),
    [
        (["LlamaForCausalLM"], [2, 1]),
        (["T5ForConditionalGeneration"], [2, 1]),
        (["GPT2LMHeadModel"], [2, 1]),
        (["CLIPTextModel"], 2),
        (["BartForSequenceClassification"], 2),
    ],
)
def test_what_writes_no_text_has_one_stop_token(architectures, eos):
    """CLIP compares each token with it, and fails at a list."""
    config = {"architectures": architectures, "vocab_size": 1000, "eos_token_id": 12}
    made = retarget(targets_of={12: (1, 2)}).config(config, None, alone=True)
    assert made["eos_token_id"] == eos


def test_for_a_role_that_the_target_lacks_another_token_stands_and_is_told():
    """Many a class can't be loaded with a null."""
    made = retarget()
    assert made.generation_config({"pad_token_id": 999}, {}) == {"pad_token_id": 0}
    assert "no pad token: 0, its unk token" in made.warnings[0]
    made = retarget(roles={"eos": 7})
    config = {"vocab_size": 1000, "pad_token_id": 999, "bos_token_id": 998, "mask_token_id": -1}
    found = made.config(config, None, False)
    assert (found["pad_token_id"], found["bos_token_id"], found["mask_token_id"]) == (7, 7, 7)
    assert [warning.partition(": the")[0] for warning in made.warnings] == [
        f"config.json: {role}_token_id" for role in ("pad", "bos", "mask")
    ]
    assert retarget(roles={"sep": 3}).generation_config({"eos_token_id": [9]}, {}) == {
        "eos_token_id": [3]
    }


def test_where_no_token_can_stand_for_a_role_there_is_null():
    made = retarget(roles={"bos": 1})
    assert made.generation_config({"eos_token_id": 999}, {}) == {"eos_token_id": None}
    assert "no eos token: null" in made.warnings[0]


def test_ids_in_a_list_keep_their_places():
    """ovis2 takes the indicators of an image by their places."""
    made = retarget()
    config = {"vocab_size": 1000, "visual_indicator_token_ids": [11, 99, 12, 11]}
    assert made.config(config, None, False)["visual_indicator_token_ids"] == [1, 99, 2, 1]
    assert "99" in made.warnings[0]


@pytest.mark.parametrize(
    ("model_type", "largest", "warned"),
    [
        ("owlvit_text_model", 499, True),
        ("owlvit_text_model", 2, False),
        ("clip_text_model", 499, True),
        ("siglip_text_model", 499, False),
    ],
)
def test_a_text_encoder_that_takes_the_largest_id_for_the_end_is_told(model_type, largest, warned):
    made = retarget(largest=largest)
    inside = {"model_type": model_type, "vocab_size": 1000, "eos_token_id": 12}
    whole = model_type.removesuffix("_text_model")
    made.config({"model_type": whole, "text_config": inside}, None, False)
    assert len(made.warnings) == warned
    assert all("config.json: text_config: a " in warning for warning in made.warnings)


def test_clip_finds_any_end_but_token_2():
    made = retarget(roles={"eos": 3})
    made.config({"model_type": "clip", "vocab_size": 1000, "eos_token_id": 12}, None, False)
    assert made.warnings == []


def test_an_id_of_no_role_that_is_lost_is_left_and_told():
    made = retarget()
    assert made.generation_config({"image_token_id": 999}, {}) == {"image_token_id": 999}
    assert "image_token_id" in made.warnings[0]


def test_a_part_with_a_vocabulary_of_its_own_keeps_its_ids():
    own = {"vocab_size": 30, "pad_token_id": 12}
    assert retarget().config({"vocab_size": 1000, "q": own}, None, False)["q"] == own


def test_lists_of_ids_are_carried_over_and_structures_are_named():
    made = retarget()
    config = {"suppress_tokens": [11, 99], "bad_words_ids": [[11]], "forced_decoder_ids": None}
    assert made.generation_config(config, {}) == config | {"suppress_tokens": [1]}
    assert len(made.warnings) == 2
    assert "[99]" in made.warnings[0]
    assert "bad_words_ids" in made.warnings[1]


def test_the_class_of_a_tokenizer_that_is_left_behind_is_not_named():
    config = {"vocab_size": 1000, "auto_map": {"AutoModel": "m.M", "AutoTokenizer": ["t.T", None]}}
    assert retarget().config(config, None, False)["auto_map"] == {"AutoModel": "m.M"}


def test_null_and_other_values_stay():
    made = retarget()
    config = {"decoder_start_token_id": None, "eos_token_id": "x", "token_ids": [[1]], "top_k": 12}
    assert made.generation_config(config, {}) == config
    assert [warning.split(": ")[1] for warning in made.warnings] == ["eos_token_id", "token_ids"]


def test_padded_sizes_are_the_vocabulary_size_too(tmp_path):
    """Rows, the tokenizer's length and config.vocab_size are three numbers."""
    write_source(tmp_path / "source", padding=30)
    config = read_json(tmp_path / "source" / "config.json")
    write_json(tmp_path / "source" / "config.json", config | {"vocab_size": 50})
    write_helper(tmp_path / "helper")
    clpstream.convert(tmp_path / "source", tmp_path / "helper", tmp_path / "target")
    assert read_json(tmp_path / "target" / "config.json")["vocab_size"] == SIZE


def test_a_model_of_sound_keeps_the_sizes_and_the_ids_of_its_codes():
    """As csm has them, and the talker of qwen3-omni."""
    made = retarget()
    sound = {"vocab_size": 51, "pad_token_id": 12, "codebook_pad_token_id": 12}
    config = made.config(
        {
            "vocab_size": 51,
            "text_vocab_size": 1000,
            "codebook_pad_token_id": 12,
            "audio_token_id": 77,
            "eos_token_id": 12,
            "depth_decoder_config": sound,
            "talker_config": {"codec_eos_token_id": 12, "image_token_id": 77},
        },
        None,
        alone=True,
    )
    assert config["vocab_size"] == 51 and config["text_vocab_size"] == 500
    assert config["codebook_pad_token_id"] == 12
    assert config["audio_token_id"] == 33 and config["eos_token_id"] == 2
    assert config["depth_decoder_config"] == sound
    assert config["talker_config"] == {"codec_eos_token_id": 12, "image_token_id": 33}
    assert made.warnings == []


def test_what_another_vocabulary_s_decoder_generates_is_left_alone():
    """As musicgen's, whose encoder has the text."""
    made = retarget()
    config = {"encoder": {"vocab_size": 1000}, "decoder": {"vocab_size": 51}}
    generation = {"decoder_start_token_id": 12, "eos_token_id": [12, 77]}
    assert made.generation_config(generation, config) == generation
    assert "generation_config.json" in made.warnings[0]
    config["decoder"]["vocab_size"] = 997  # and the table is padded
    assert made.generation_config(generation, config)["eos_token_id"] == [2, 33]


def test_without_a_generation_config_none_is_written(pair):
    clpstream.convert(*pair)
    assert not (pair.output / "generation_config.json").exists()


def test_roles_come_from_the_helpers_tokenizer(tmp_path):
    write_source(tmp_path / "source", special={"bos": "<s>", "eos": "</s>", "pad": "<p>"})
    config = read_json(tmp_path / "source" / "config.json")
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    write_json(tmp_path / "source" / "config.json", config | ids)
    write_json(tmp_path / "source" / "generation_config.json", ids | {"eos_token_id": [1]})
    write_helper(tmp_path / "helper", special={"unk": "<u>", "eos": "<e>", "bos": "<b>"})
    result = clpstream.convert(tmp_path / "source", tmp_path / "helper", tmp_path / "target")
    made = read_json(tmp_path / "target" / "config.json")
    assert {key: made[key] for key in ids} == {
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    generation = read_json(tmp_path / "target" / "generation_config.json")
    assert generation == {"bos_token_id": 2, "eos_token_id": [1], "pad_token_id": 0}
    assert any("pad_token_id" in warning for warning in result.report.warnings)


def test_transformers_is_told_the_tokenizer_class_where_the_tokenizer_is_silent(tmp_path):
    write_source(tmp_path / "source")
    write_helper(tmp_path / "helper")
    both = tmp_path / "source", tmp_path / "helper"
    config = read_json(tmp_path / "source" / "config.json")
    write_json(tmp_path / "source" / "config.json", config | {"tokenizer_class": "GPT2Tokenizer"})
    clpstream.convert(*both, tmp_path / "named")
    assert "tokenizer_class" not in read_json(tmp_path / "named" / "config.json")
    write_json(tmp_path / "helper" / "tokenizer_config.json", {"eos_token": "</s>"})
    clpstream.convert(*both, tmp_path / "silent")
    made = read_json(tmp_path / "silent" / "config.json")
    assert made["tokenizer_class"] == "PreTrainedTokenizerFast"
