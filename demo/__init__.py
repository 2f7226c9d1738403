"""The demo of the repository: its pictures of digits, its weights and its notebooks."""
