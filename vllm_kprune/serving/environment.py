"""The environment variables that kprune sets for the processes of its own server.

They have no VLLM_ prefix: vLLM warns of, or refuses, variables with that prefix that it does not
know.
"""

__all__ = ["COUNTER_FOLDER", "HEAD_PROFILES", "NAMED", "USAGE_ROWS"]

# The plugins named with --plugin, for this process and the API servers that it starts.
NAMED = "KPRUNE_ENDPOINT_PLUGINS"
# The folder of this server's counter files (see `counter_files`).
COUNTER_FOLDER = "KPRUNE_COUNTERS"
# The profiles of this server's pruned head and their rows, for processes that count requests.
HEAD_PROFILES = "KPRUNE_HEAD_PROFILES"
# How many token ids this server counts in its answers, for processes that count them.
USAGE_ROWS = "KPRUNE_USAGE_ROWS"
