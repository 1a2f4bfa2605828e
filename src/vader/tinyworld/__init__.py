"""The tiny world: a procedural world with its own small pretrained models, for laptops, tests and benchmarks."""
