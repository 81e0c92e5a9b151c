"""Model folders: the base checkpoint, the overlay that kprune builds from it, and its manifest."""
