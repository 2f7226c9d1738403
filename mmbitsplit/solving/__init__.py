"""From what was captured of a layer to its solution."""
