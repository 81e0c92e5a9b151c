"""Model folders: the base model, the overlay that kprune builds from it, and its manifest."""
