"""The Messages API: Anthropic's shapes in front of the same chats."""
