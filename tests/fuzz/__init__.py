"""Thousands of malformed inputs, each given to the `vader` command as a user would: run `python -m fuzz` in `tests`."""
