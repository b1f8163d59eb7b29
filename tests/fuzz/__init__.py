"""Fuzzing of everything that reads bytes from strangers: `python -m tests.fuzz`, or `make fuzz`."""
