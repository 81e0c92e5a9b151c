"""One model served both whole and pruned, for `kprune demo` and the paper's experiment."""
