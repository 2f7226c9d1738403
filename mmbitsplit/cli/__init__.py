"""Bodies of the command-line tools, a file each."""
