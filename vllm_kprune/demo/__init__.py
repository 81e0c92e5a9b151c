"""One model served twice, whole and pruned: what `kprune demo` and the paper's experiment run."""
