"""An OpenAI-compatible endpoint: requests, answers, and a client that trusts neither."""
