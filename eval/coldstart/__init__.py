"""What answers first, and from how much memory: each competitor as its own documentation advises."""
