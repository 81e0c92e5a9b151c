"""Tokenizers as values: reading `tokenizer.json`, the derivation of each token, and pruning."""
