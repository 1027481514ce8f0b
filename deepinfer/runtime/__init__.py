"""The engine process (`host`), its keeper and caller (`supervisor`, `client`), and their `wire`."""
