"""What a training step needs, before it is run: its peak of memory and its operations, counted without data."""
