"""The vLLM plugin: the only part of kprune that imports vllm.

`plugin` is what vLLM calls; `options` declares what users can say; `activation` turns it into
engine settings; `loader` gathers the kept rows; `endpoint` answers `GET /kprune`; `guard` is the
logits processor of the language guard, with what it needs in `guard_*`; `counters` and `metrics`
show its counts. `prune_service` prunes prompts before they are rendered: `prune_hooks` brings them,
`prune_job` is what a thread (`prune_worker`) does with one. `compat` and `compat_prompt` hold every
private vLLM name.
"""
