"""`python -m vader` is the `vader` command, so that `accelerate launch -m vader train ...` and `torchrun` work."""

import os
import sys

if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]  # `-m` puts it before all: a stray file there would stand for a library, as it does not for `vader`

from vader.cli import main

sys.exit(main())
