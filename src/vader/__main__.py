"""`python -m vader` is the `vader` command, so that `accelerate launch -m vader train ...` and `torchrun` work."""

import sys

from vader.cli import main

sys.exit(main())
