"""Write a model of a GGUF file as a checkpoint that curves.py can take, its weights dequantised.

pip install ".[interop]" gguf accelerate
python bench/quality/from_gguf.py FILE.gguf models/NAME
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main() -> None:
    """Read one file, write one directory."""
    parser = argparse.ArgumentParser(description="Write a GGUF file's model as a checkpoint.")
    parser.add_argument("file", type=Path, help="the model, quantised or not")
    parser.add_argument("output", type=Path, help="directory of the checkpoint, in bfloat16")
    arguments = parser.parse_args()
    folder, name = arguments.file.parent, arguments.file.name
    plain = GgufConfig(gguf_file=name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, quantization_config=plain, dtype=torch.bfloat16
    )
    model.save_pretrained(arguments.output)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
