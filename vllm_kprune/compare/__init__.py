"""Compare two OpenAI-compatible endpoints: is the pruned model better, equal or worse?

Both get the same work; the answers are judged, and every result has a confidence interval.
`comparing.compare_endpoints` does it all. The rooms, from the bottom up (a module imports only from
rooms before its own, which `tests/test_layers.py` checks):

- `measurements`, `margins`, `options`: the values that stages pass on, what counts as equal, and
  the options that suites share.
- `endpoint/`: one endpoint; requests and answers, client, probing.
- `statistics/`: from measurements to effects, intervals and verdicts.
- `report/`: the report's schema, its file and its page.
- `journal`, `run`, `asking`: the answers on disk, the suites in turn, both sides asked at once.
- `suites/`: one file for each suite, and the table of all.
- `settings`, `connect`, `conclude`, `conditions`, `gate`, `ci_files`: the settings of a run, its
  beginning and end, conditions on its report, files for CI.
- `planning`, `rejudge`, `comparing`: what a run will take, kept answers judged again, the whole.
"""
