"""What a run leaves behind, and how the next one goes on from it."""
