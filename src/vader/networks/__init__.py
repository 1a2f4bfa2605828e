"""What is done to a network from outside: adapter, recomputing, offload, shards. It stays the same object."""

import logging

# Where it is installed, peft loads it, and then it tells which of its kernels are missing.
logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
