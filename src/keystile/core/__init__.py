"""The pure core: no sockets, clock, files, logging, asyncio or randomness."""
