"""What a run is worth: videos in and out of files, their scores, and the pages and plots that show a run."""
