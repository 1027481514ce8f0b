"""The Responses API: a chat told in items, as OpenAI and Open Responses describe it."""
