"""The bench: the paper's tables as grids of runs, stored figures, and the pages made of them.

Part of the repository, not of the wheel; ``mmbitsplit paper-tables`` and the like find it beside
the package.
"""
