"""Tiny random models of the architectures of transformers that have a text vocabulary.

`species()` lists them, `build` makes one. Made at two vocabulary sizes, the tensors whose shapes
differ between the two saves are the vocabulary tensors: a truth that needs no list of names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

MAPPINGS = (
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "IMAGE_TEXT_TO_TEXT",
    "MULTIMODAL_LM",
    "MASKED_LM",
    "CAUSAL_LM",
    "PRETRAINING",
)
"""Where classes are looked up, first what checkpoints of a type usually hold."""

MAX_PARAMETERS = 3_000_000
"""More than this means that some part was not made small."""

WITHOUT_TEXT = {"hiera", "musicgen", "musicgen_melody", "unispeech", "unispeech-sat", "videomae",
                "vit_mae", "wav2vec2", "wav2vec2-conformer"}  # fmt: skip
"""Types in those mappings whose classes have no language model: images, audio codes, CTC."""


@dataclass(frozen=True)
class Species:
    """An architecture: its config class by `model_type`, a model class, and settings of its own."""

    model_type: str
    class_name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def species() -> dict[str, Species]:
    """All architectures by name: the model type, or the model type and what is special."""
    found: dict[str, Species] = {}
    for mapping in MAPPINGS:
        for model_type, name in getattr(
            modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES"
        ).items():
            if model_type not in WITHOUT_TEXT:
                class_name = name if isinstance(name, str) else name[0]
                found.setdefault(model_type, Species(model_type, class_name))
    return dict(sorted((found | VARIANTS).items()))


UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
VARIANTS = {
    "albert/pretraining": Species("albert", "AlbertForPreTraining"),
    "bart/causal": Species("bart", "BartForCausalLM"),
    "bart/headless": Species("bart", "BartModel"),
    "bert/causal": Species("bert", "BertLMHeadModel"),
    "bert/headless": Species("bert", "BertModel"),
    "bert/pretraining": Species("bert", "BertForPreTraining"),
    "bert/untied": Species("bert", "BertForMaskedLM", UNTIED),
    "bloom/headless": Species("bloom", "BloomModel"),
    "csm": Species("csm", "CsmForConditionalGeneration"),
    "distilbert/untied": Species("distilbert", "DistilBertForMaskedLM", UNTIED),
    "electra/causal": Species("electra", "ElectraForCausalLM"),
    "electra/pretraining": Species("electra", "ElectraForPreTraining"),
    "falcon/untied": Species("falcon", "FalconForCausalLM", UNTIED),
    "gemma3n_text/ids after the text's": Species(
        "gemma3n_text", "Gemma3nForCausalLM", {"vocab_size": lambda rows: rows + 8}
    ),
    "gpt2/double heads": Species("gpt2", "GPT2DoubleHeadsModel"),
    "gpt2/headless": Species("gpt2", "GPT2Model"),
    "gpt2/untied": Species("gpt2", "GPT2LMHeadModel", UNTIED),
    "gpt_neox/tied": Species("gpt_neox", "GPTNeoXForCausalLM", TIED),
    "llama/classifier": Species("llama", "LlamaForSequenceClassification", {"pad_token_id": 0}),
    "llama/headless": Species("llama", "LlamaModel"),
    "llama/tied": Species("llama", "LlamaForCausalLM", TIED),
    "llava/tied": Species("llava", "LlavaForConditionalGeneration", TIED),
    "mbart/untied": Species("mbart", "MBartForConditionalGeneration", UNTIED),
    "modernbert/untied": Species("modernbert", "ModernBertForMaskedLM", UNTIED),
    "opt/narrow": Species("opt", "OPTForCausalLM", {"word_embed_proj_dim": 16}),
    "qwen2/headless": Species("qwen2", "Qwen2Model"),
    "shieldgemma2": Species(
        "shieldgemma2",
        "ShieldGemma2ForImageClassification",
        {"yes_token_index": 40, "no_token_index": 41},
    ),
    "roberta/classifier": Species("roberta", "RobertaForSequenceClassification"),
    "roberta/untied": Species("roberta", "RobertaForMaskedLM", UNTIED),
    "t5/encoder": Species("t5", "T5EncoderModel"),
    "whisper/untied": Species("whisper", "WhisperForConditionalGeneration", UNTIED),
}
"""More classes and settings of types that are common in checkpoints."""

SMALL: dict[str, Any] = {
    # widths
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "emb_dim": 32, "dim_model": 32,
    "embed_dim": 32, "embedding_size": 16, "embedding_dim": 32, "word_embed_proj_dim": 32,
    "input_embedding_size": 16, "output_embedding_size": 24, "projection_dim": 32,
    "decoder_hidden_size": 32, "out_hidden_size": 32, "output_dim": 32, "text_hidden_size": 32,
    "encoder_hidden_size": 32, "cross_attention_hidden_size": 32, "lru_width": 32,
    "attention_hidden_size": 32, "backbone_hidden_size": 32, "hidden_dim": 32, "width": 32,
    # inner widths
    "intermediate_size": 48, "ffn_dim": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "d_ff": 48, "d_inner": 48, "n_inner": 48, "hidden_dim_ffn": 48, "dff": 48, "mlp_dim": 48,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "ffn_hidden_size": 48,
    "dim_ff": 48, "feed_forward_size": 48, "shared_intermediate_size": 48,
    "expert_ffn_hidden_size": 24,
    # layers
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "depth": 2, "layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "num_encoder_layers": 2, "num_decoder_layers": 2,
    "encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2, "num_blocks": 2,
    "num_global_layers": 2, "max_window_layers": 1, "first_k_dense_replace": 1,
    "num_kv_shared_layers": 0, "num_nextn_predict_layers": 0,
    # heads
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4, "attention_heads": 4, "num_key_value_heads": 2,
    "num_kv_heads": 2, "kv_n_heads": 2, "encoder_num_attention_heads": 4,
    "decoder_num_attention_heads": 4, "encoder_num_key_value_heads": 4,
    "decoder_num_key_value_heads": 4, "num_query_groups": 2,
    "head_dim": 8, "d_kv": 8, "attention_head_size": 8, "kv_channels": 8, "d_head": 8,
    "global_head_dim": 8, "swa_head_dim": 8,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "qk_head_dim": 12, "v_head_dim": 8,
    "kv_lora_rank": 16, "q_lora_rank": 16, "rotary_dim": 4,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "index_head_dim": 8, "index_n_heads": 2, "index_topk": 4,
    # state space
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_num_heads": 8, "mamba_head_dim": 8,
    "mamba_headdim": 8, "n_mamba_heads": 2, "mamba_d_state": 8, "state_size": 8,
    "ssm_state_size": 8, "mamba_n_groups": 1, "n_groups": 1, "mamba_dt_rank": 4,
    "time_step_rank": 4, "chunk_size": 16, "mamba_chunk_size": 16, "mamba_d_ssm": 64,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "n_group": 1, "topk_group": 1,
    "num_expert_group": 1, "num_experts_per_token": 2,
    "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1,
    # positions
    "max_position_embeddings": 64, "n_positions": 64, "max_source_positions": 32,
    "max_target_positions": 64, "original_max_position_embeddings": 32, "sliding_window": 16,
    "attention_window_size": 16, "window_size": 16, "context_length": 64,
    # vision and audio
    "image_size": 28, "patch_size": 14, "patch_embed_hidden_size": 32, "visual_feat_dim": 32,
    "input_feat_per_channel": 16, "num_position_embeddings": 16, "num_mel_bins": 16,
    "num_filters": 4, "codebook_size": 16,
}  # fmt: skip
"""What a setting of this name becomes, where it is not None."""

VOCABULARY_KEYS = ("vocab_size", "vocab_size_per_layer_input", "n_words", "text_vocab_size",
                   "src_vocab_size", "tgt_vocab_size", "decoder_vocab_size",
                   "unpadded_vocab_size")  # fmt: skip
NOT_TEXT = re.compile(
    "vision|audio|image_config|codebook|depth|talker|qformer|protein|projector|code_predictor|"
    "word_timestamp"
)

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "depth")
DERIVED = ("id2label", "label2id", "transformers_version", "architectures", "_name_or_path",
           "per_layer_config")  # fmt: skip
"""What a config works out by itself, or what speaks of layers that are not there any more."""
WHEN_NONE = {"head_dim": 8, "num_key_value_heads": 2, "moe_intermediate_size": 24,
             "num_experts_per_tok": 2}  # fmt: skip
"""What has to be said for some models, where the default is None."""


def shrink(settings: dict[str, Any], rows: int, path: str = "") -> dict[str, Any]:
    """Settings of a config, made small at every level; `rows` is the vocabulary's size."""
    layers = {settings[key] for key in LAYERS if isinstance(settings.get(key), int)}
    small: dict[str, Any] = {}
    for key, value in settings.items():
        if key in DERIVED:
            continue
        if isinstance(value, dict):
            small[key] = shrink(value, rows, f"{path}.{key}")
        elif value is None:
            small[key] = WHEN_NONE.get(key)
        elif key in VOCABULARY_KEYS:
            small[key] = 64 if NOT_TEXT.search(path) else rows
        elif isinstance(value, int) and not isinstance(value, bool):
            small[key] = shrunk_number(str(key), value, small.values())
        elif key == "mrope_section":
            small[key] = [2, 1, 1]
        elif isinstance(value, (list, tuple)) and len(value) in layers:
            # the last layers, since hybrids often begin with several layers of one kind
            small[key] = [shrunk_number(str(key), item, ()) for item in list(value)[-2:]]
        else:
            small[key] = value
    if small.get("qk_rope_head_dim"):  # latent attention rotates that part of each head only
        small |= {"head_dim": small["qk_rope_head_dim"], "num_key_value_heads": 4}
    return small


def shrunk_number(name: str, value: Any, taken: Any) -> Any:
    """A number of a config, made small by what it is called."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if re.search(r"(token|_patch|_start|_end|_newline)_(id|index)$", name):
        return value if value < 300 else next(id for id in range(300, 331) if id not in taken)
    if name in SMALL:
        return SMALL[name]
    return 32 if value > 64 and re.search("dim|size|width|rank|channels", name) else value


ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MHA = {"num_key_value_heads": 4}
MROPE = {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}}
SAM = {"output_channels": 16, "downsample_channels": [16, 32], "scale": 32, "mlp_dim": 48}
CODEC = {"num_filters": 2, "downsampling_ratios": [2, 2], "depths": [1, 1, 1]}
OVERRIDES: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 20},
    "chameleon": {"vocabulary_map": {"<image>": 300, "IMGIMGAZ": 301}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": ROPE}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "csm": {"vocab_size": 64, "num_codebooks": 2, "codebook_pad_token_id": 63,
            "depth_decoder_config": {"num_codebooks": 2},
            "codec_config": {"upsample_groups": 32, "num_quantizers": 2,
                             "num_semantic_quantizers": 1}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0},
             "ffn_config": {"hidden_size": 32}},
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
        "vision_config": {"sam_config": SAM},
    },
    "dia": {"decoder_config": {"vocab_size": 64}},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {"text_config": MHA | {"layer_types": ["indexed_attention"] * 2}},
    "dots3_note_text": MHA | {"layer_types": ["indexed_attention"] * 2},
    "emu3": {"vocabulary_map": {"<image>": 300, "<|extra_200|>": 301},
             "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1]}},
    "ernie4_5_vl_moe": {"text_config": {
        "moe_intermediate_size": [24, 24],
        "rope_parameters": ROPE | {"mrope_section": [1, 1, 2]}}},
    "esm": {"vocab_size": lambda rows: rows, "pad_token_id": 1, "mask_token_id": 3},
    "esmc": MHA,
    "florence2": {
        "vision_config": {"depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2],
                          "patch_padding": [3, 1], "patch_prenorm": [False, True],
                          "embed_dim": [16, 32], "num_heads": [2, 4], "num_groups": [2, 4],
                          "window_size": 4}
    },
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "glm5_next": {"text_config": MHA | {"index_kpool": 2, "qk_rope_head_dim": 0}},
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "downsample_rate": "1/2",
                        "vision_config": {"hidden_size": 64}},
    "janus": {"vq_config": {"num_embeddings": 16, "base_channels": 32,
                            "channel_multiplier": [1, 1], "latent_channels": 32}},
    "kyutai_speech_to_text": {"codec_config": {"upsample_groups": 32}, "num_codebooks": 2,
                              "codebook_vocab_size": 17, "audio_bos_token_id": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "mistral_large4": {"text_config": {"kv_source_layers": [0, 1]}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "moonshine_streaming": {"num_key_value_heads": 4, "encoder_config": MHA},
    "nemo_speechlm": {"audio_config": {"asr_config": MHA,
                                       "diarization_config": {"audio_config": MHA}},
                      "word_timestamp_config": MHA | {"blank_token_id": 63}},
    "neomme": {"rope_parameters": {
        kind: ROPE | {"partial_rotary_factor": 0.5}
        for kind in ("full_attention", "sliding_attention")}},
    "perceiver": {"d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 1},
    "qwen2_5_omni": {
        "thinker_config": {"text_config": MROPE},
        "token2wav_config": {
            "bigvgan_config": {"upsample_initial_channel": 64},
            "dit_config": {"num_embeds": 17, "enc_channels": [16, 16, 16, 16, 48]},
        }
    },
    "qwen3_omni_moe": {"talker_config": {
        "spatial_merge_size": 2, "text_config": {"shared_expert_intermediate_size": 24}}},
    "qwen4_exp": {"text_config": {"use_cache": False,
                                  "layer_types": ["linear_attention", "linear_attention"]}},
    "qwen4_exp_text": {"layer_types": ["linear_attention", "linear_attention"],
                       "ple_layer_ids": [1], "ngram_vocab_size_base": 1000, "ple_embed_dim": 32,
                       "eos_token_id": 0, "split_ngram_parts": 1},
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16],
                 "attn_layers": ["local", "lsh"]},
    "speech-encoder-decoder": {"encoder": {"conv_dim": [16] * 7}},
    "speecht5": {"conv_dim": [16] * 7},
    "squeezebert": {"embedding_size": 32},
    "unlimited_ocr": {"vision_config": {"sam_config": SAM}},
    "vibevoice": {"audio_config": CODEC, "semantic_model_config": CODEC},
    "vibevoice_asr": {
        "acoustic_tokenizer_chunk_size": 3200,
        "acoustic_tokenizer_encoder_config": CODEC,
        "semantic_tokenizer_encoder_config": CODEC,
    },
    "zaya": {"num_experts_per_tok": 1},
    "colqwen2": {"vlm_config": {"text_config": MROPE}},
    "glm46v": {"text_config": MROPE},
    "glm4v": {"text_config": MROPE},
    "glm_ocr": {"text_config": MROPE},
    "glmga": {"text_config": MROPE},
    "glm4v_moe": {"text_config": {"rope_parameters": ROPE | {"mrope_section": [1, 1, 0]}}},
    "hunyuan_vl": {"text_config": MROPE},
    "hy_v4": {"indexer_types": ["full", "full"]},
    "nystromformer": {"conv_kernel_size": 5},
    "paddleocr_vl": {"text_config": MROPE},
    "qwen2_5_omni_thinker": {"text_config": MROPE},
    "qwen2_5_vl": {"text_config": MROPE},
    "qwen2_vl": {"text_config": MROPE},
    "step3p7": {"text_config": {"sliding_window": 16}},
    "xmod": {"default_language": "en_XX"},
    "deepseek_v4": {"head_dim": 32},
    "zamba2": {"mamba_headdim": 32},
    "granitemoehybrid": {"use_cache": False},
}  # fmt: skip
"""Settings of models that the rules above do not make run; functions take the vocabulary's size."""


def ramp(*shape: int) -> torch.Tensor:
    """Numbers for the pictures and sounds that some models can't do without."""
    return torch.linspace(-1, 1, math.prod(shape)).reshape(shape)


def _picture(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"pixel_values": ramp(1, 3, 28, 28)}


def _features(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_features": ramp(1, 32, 16)}


def _sound(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_values": ramp(1, 3200)}


def _draft(ids: torch.Tensor) -> dict[str, Any]:
    """What a model that drafts for another takes from that one."""
    sizes = {"sliding_attention": 8, "full_attention": 512}
    states = {kind: (ramp(1, 2, 8, size), ramp(1, 2, 8, size)) for kind, size in sizes.items()}
    return {"inputs_embeds": ramp(1, 1, 64), "shared_kv_states": states}


MORE_INPUTS: dict[str, Callable[[torch.Tensor], dict[str, Any]]] = {
    "blip": _picture,
    "canary": _features,
    "cohere_asr": _features,
    "dia": lambda ids: {"decoder_input_ids": torch.zeros(1, 8, 9, dtype=torch.long)},
    "gemma4_unified_assistant": _draft,
    "idefics": lambda ids: {
        "pixel_values": ramp(1, 1, 3, 28, 28),
        "image_attention_mask": torch.ones(1, ids.shape[1], 1),
    },
    "kyutai_speech_to_text": lambda ids: {
        "input_ids": torch.stack([ids, torch.zeros_like(ids), torch.ones_like(ids)], -1)
    },
    "lxmert": lambda ids: {"visual_feats": ramp(1, 4, 32), "visual_pos": ramp(1, 4, 4)},
    "moonshine": _sound,
    "moonshine_streaming": _sound,
    "pix2struct": lambda ids: {"flattened_patches": torch.zeros(1, 4, 34)},
    "pp_formulanet": _picture,
    "speech-encoder-decoder": _sound,
    "speech_to_text": _features,
    "speecht5": _sound,
    "splinter": lambda ids: {"question_positions": torch.zeros(1, 1, dtype=torch.long)},
    "udop": lambda ids: {"bbox": torch.zeros(1, ids.shape[1], 4)},
    "vision-encoder-decoder": _picture,
    "voxtral_realtime": lambda ids: {"input_features": ramp(1, 16, 64)},
    "whisper": lambda ids: {"input_features": ramp(1, 16, 64)},
}
"""What models need beside a text to run at all, by model type."""

TEXT_PART = {
    "blip-2": "language_model",
    "instructblip": "language_model",
    "instructblipvideo": "language_model",
    "llama4": "language_model",
    "kosmos-2": "text_model",
    "pi0": "model.vlm",
    "qwen2_5_omni": "thinker",
    "qwen3_omni_moe": "thinker",
}
"""The part to run, by model type, where the whole does not run with a text alone."""


def changed(settings: dict[str, Any], changes: dict[str, Any], rows: int) -> dict[str, Any]:
    """Settings with changes put in at every level."""
    result = dict(settings)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(settings.get(key), dict):
            result[key] = changed(settings[key], value, rows)
        else:
            result[key] = value(rows) if callable(value) else value
    return result


def config_of(kind: Species, rows: int) -> Any:
    """A small config whose text vocabulary has `rows` tokens."""
    made = CONFIG_MAPPING[kind.model_type]
    settings = shrink(made().to_dict(), rows)
    settings = changed(settings, OVERRIDES.get(kind.model_type, {}), rows)
    return made(**changed(settings, kind.settings, rows))


def model_class(kind: Species) -> Any:
    return getattr(transformers, kind.class_name)


def check_small(kind: Species, rows: int) -> None:
    """Lay the model out without memory for it.

    Raises ValueError if a part of it was not made small, and whatever transformers raises where
    this version of it can't make the model.
    """
    with torch.device("meta"):
        model = model_class(kind)(config_of(kind, rows))
    count = sum(tensor.numel() for tensor in model.parameters())
    if count > MAX_PARAMETERS:
        raise ValueError(f"{kind}: {count} parameters; some part of it is not small")


def build(kind: Species, rows: int) -> Any:
    """The tiny model, in evaluation mode: the same weights every time. Raises as check_small."""
    check_small(kind, rows)
    torch.manual_seed(0)
    model = model_class(kind)(config_of(kind, rows)).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            # a bias of zeros would hide that its rows went to the wrong tokens
            if tensor.is_floating_point() and tensor.numel() > 1 and tensor.max() == tensor.min():
                tensor.add_(0.02 * torch.randn_like(tensor))
    return model
