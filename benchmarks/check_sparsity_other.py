"""The other side of `check_sparsity.py`: llm-compressor, in an environment of its own.

PYTHON benchmarks/check_sparsity_other.py MODEL IDS.npy wanda|sparsegpt SPARSITY OUT.safetensors

Writes the weights of every linear layer under its name in transformers. Imports nothing of kprune.
"""

import sys

import numpy as np
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import WandaPruningModifier
from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

MODIFIERS = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}


def main(folder: str, ids_file: str, method: str, sparsity: str, output: str) -> None:
    """Sparsify the model in float32 and save its matrices."""
    ids = np.load(ids_file)
    rows = {"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        dataset=Dataset.from_dict(rows),
        recipe=MODIFIERS[method](sparsity=float(sparsity), ignore=["re:.*lm_head.*"]),
        max_seq_length=ids.shape[1],
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
    )
    matrices = {
        f"{name}.weight": module.weight.detach().clone().contiguous()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    save_file(matrices, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
