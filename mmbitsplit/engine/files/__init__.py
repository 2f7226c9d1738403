"""A run's files: whole or not at all, by one process."""
