"""The data plane: sockets, and nothing that could wait for a database."""
