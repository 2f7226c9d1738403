"""What is seen of a model when it runs: calls, values, readers."""
