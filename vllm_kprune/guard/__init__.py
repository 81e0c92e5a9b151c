"""The language guard: which tokens may come next, so that no other script is ever produced."""
