"""Counts the tokens that a server answers with, and tells the sums."""
