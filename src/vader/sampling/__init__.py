"""From noise to latents: the sampling chain, guidance, and the policies that say where gradient enters."""
