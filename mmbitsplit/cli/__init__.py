"""The command line: a module a command, each also a script of ``tools/``."""
