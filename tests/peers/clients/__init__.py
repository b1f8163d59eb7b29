"""Real MCP clients, each walking the same tours through an endpoint with nothing but an API key.

A tour is `offers` (tools, resources, prompts, completion, progress), `conversation` (log lines, sampling, elicitation,
a resumed stream: handshake era), `rounds` (questions answered by a retry: 2026-07-28), or `everything` (against
`@modelcontextprotocol/server-everything`). A walk returns what the client got to see, in one shape for all clients.
"""
