"""The language guard inside vLLM."""
