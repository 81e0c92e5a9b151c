"""Small models of every family, saved once, and a browser."""

from support.browser import browser
from support.small_runs import one_thread, own_cache, saved, shared_cache, unsynced

__all__ = ["browser", "one_thread", "own_cache", "saved", "shared_cache", "unsynced"]
