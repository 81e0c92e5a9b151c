"""Files on disk: folders that appear whole or not at all, digests, kprune's cache."""
