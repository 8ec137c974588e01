"""Models that come with the workflow."""
