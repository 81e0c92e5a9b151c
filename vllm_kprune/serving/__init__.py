"""The vLLM plugin: the only part of kprune that imports vllm.

`plugin` is what vLLM calls; `options` declares what users can say; `activation` turns it into
engine settings; `loader` gathers the kept rows; `endpoint` answers `GET /kprune`; `guard` is the
logits processor of the language guard, with what it needs in `guard_*`; `counters` and `metrics`
show its counts; `compat` holds every private vLLM name.
"""
