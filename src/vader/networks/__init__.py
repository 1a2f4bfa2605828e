"""What is done to a network from outside: adapter, recomputation, offload. It stays the same object throughout."""
