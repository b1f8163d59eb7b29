"""Keystile: a self-hosted gateway that keeps real credentials out of MCP clients."""

__version__ = "0.1.0"
