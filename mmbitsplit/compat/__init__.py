"""Small repairs for packages beside this one, each in its own file and each only where needed."""
