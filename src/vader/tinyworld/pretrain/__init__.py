"""Scripts that train the tiny world's models from the renderer alone, with fixed seeds (`vader tinyworld build`)."""
