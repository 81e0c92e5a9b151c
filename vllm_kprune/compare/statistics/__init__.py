"""From measurements to effects, confidence intervals and verdicts.

`pairing` and `aggregates` say what is compared, `resampling` and `intervals` how certain it is,
`comparison` puts both together, and `verdicts` says it in words.
"""
