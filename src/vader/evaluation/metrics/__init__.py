"""Figures of videos that nothing is trained on: of each video, or of a whole set of them."""
