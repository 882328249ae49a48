"""Which class of transformers reads a tokenizer, where its own files don't say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clpstream.vocabulary.files import TEKKEN_FILE, TIKTOKEN, TOKENIZER_FILE
from clpstream.vocabulary.tokens import Vocabulary

_MODEL_TYPES = {
    "AlbertTokenizer": ("albert",),
    "BertTokenizer": ("bert", "distilbert", "electra", "layoutlm"),
    "CLIPTokenizer": ("clip",),
    "CamembertTokenizer": ("camembert",),
    "DebertaV2Tokenizer": ("deberta-v2",),
    "GPT2Tokenizer": ("codegen", "gpt2", "gpt_neo", "gptj", "opt", "phi"),
    "GemmaTokenizer": ("gemma", "gemma2"),
    "LlamaTokenizer": ("llama", "mistral", "mixtral"),
    "MarianTokenizer": ("marian",),
    "OpenAIGPTTokenizer": ("openai-gpt",),
    "Qwen2Tokenizer": ("qwen2", "qwen3"),
    "RobertaTokenizer": ("bart", "longformer", "roberta"),
    "T5Tokenizer": ("mt5", "t5"),
    "WhisperTokenizer": ("whisper",),
    "XLMRobertaTokenizer": ("xlm-roberta", "xlm-roberta-xl"),
    "XLNetTokenizer": ("xlnet",),
}
_CLASSES = {kind: name for name, kinds in _MODEL_TYPES.items() for kind in kinds}


def tokenizer_class(vocabulary: Vocabulary, config: Mapping[str, Any]) -> str | None:
    """The class for a tokenizer whose tokenizer_config.json names none; None if it can't be told.

    config: config.json of the model that the tokenizer comes from, by whose type transformers
    chooses the class. A tokenizer that is moved to another model needs its class named.
    """
    if isinstance(config.get("tokenizer_class"), str):
        return str(config["tokenizer_class"])
    if vocabulary.path.name in (TOKENIZER_FILE, TEKKEN_FILE) or vocabulary.kind == TIKTOKEN:
        return "PreTrainedTokenizerFast"
    return _CLASSES.get(str(config.get("model_type")))
