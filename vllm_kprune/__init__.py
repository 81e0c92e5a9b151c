"""kprune: keep only the tokens that your languages need, and serve the smaller model with vLLM."""

__all__ = ["__version__"]

__version__ = "0.1.0"
