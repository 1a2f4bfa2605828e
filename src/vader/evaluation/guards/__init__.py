"""Guards: metrics with a rule that says when a gain is not to be trusted."""
