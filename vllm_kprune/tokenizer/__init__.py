"""Tokenizers as values: read a `tokenizer.json`, derive each token, and prune."""
