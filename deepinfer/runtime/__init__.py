"""The engine process (`host`), its keeper (`keeper`), its callers (`client`), and their `wire`."""
