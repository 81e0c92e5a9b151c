"""Running and measuring servers from outside, over HTTP: nothing here imports vllm."""
