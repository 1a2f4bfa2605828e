"""From latents, or from video files, to scores: the only place where pixels meet rewards."""
