"""Pruning the LM head alone inside vLLM: fewer logits are computed, token ids stay as they are."""
