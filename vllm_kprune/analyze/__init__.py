"""What pruning changes in a model: perplexity, masks, features and neurons, by language."""
