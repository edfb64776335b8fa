"""A page about a store: what its shards are worth, what is planned for T and S, and what that takes."""
