"""Open-Sora 1.2: the family (`model`), its two networks, its prompts, its sizes and the parts of its checkpoint."""
