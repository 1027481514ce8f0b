"""The engine process, its supervisor and its client, and the wire between them."""
