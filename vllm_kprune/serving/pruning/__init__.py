"""Input pruning inside vLLM."""
