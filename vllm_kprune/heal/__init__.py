"""Healing: a short training that gives a pruned model back what pruning took from it."""
