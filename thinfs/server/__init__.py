"""The server and its control socket: one JSON object a line."""
