"""Two OpenAI-compatible endpoints, given the same work: better, equal or worse, with intervals."""
