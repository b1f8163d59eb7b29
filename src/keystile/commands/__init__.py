"""The commands of the command line, a module a noun. `cli.py` puts them together."""
