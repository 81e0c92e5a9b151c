"""Prune a prompt before a model reads it: rank its tokens, keep the most important ones."""
