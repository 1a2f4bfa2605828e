"""What is done to a network from outside: adapter, recomputing, offload, shards. It stays the same object."""
