"""Files on disk: folders that appear complete or not at all, digests, and kprune's cache."""
