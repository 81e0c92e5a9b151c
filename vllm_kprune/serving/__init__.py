"""The vLLM plugin: the only part of kprune that imports vllm.

`plugin` is what vLLM calls; `options` declares what users can set; `activation` turns it into
engine settings; `loader` gathers the kept rows; `endpoint` answers `GET /kprune`. `guard` holds the
logits processor of the language guard, `pruning` the input pruner, and `compat` every private name
of vLLM that they need.
"""
