"""From a checkpoint to a store of shards, and what its bytes mean."""
