"""Parsers of tool calls, one file a format; `text/tool_calls.py` has their promises."""
