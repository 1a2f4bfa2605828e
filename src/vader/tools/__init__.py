"""Tools beside training: checks of parts of one's own, exports."""
