"""The engine process (`host`), what keeps it alive (`keeper`) and calls it (`client`); their `wire`."""
