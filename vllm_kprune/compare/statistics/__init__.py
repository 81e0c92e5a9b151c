"""From measurements to effects, intervals and verdicts."""
