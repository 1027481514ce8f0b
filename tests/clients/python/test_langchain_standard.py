"""LangChain's own test suite for chat models, for ChatOpenAI and our server.

What it asks of the model's sense is asked of `agent`, which calls the first tool with the values
that the suite looks for. What must hold for any model is asked of the real one.
"""

from __future__ import annotations

from typing import Any

from conftest import MAX_TOKENS
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class ChatSuite(ChatModelIntegrationTests):
    model_name = ""
    structured_output_method = "json_schema"

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": self.model_name, "max_retries": 0, "temperature": 0, "stream_usage": True}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"max_tokens": MAX_TOKENS}

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": self.structured_output_method}

    @property
    def supports_json_mode(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "sample-tools" if self.model_name == "sample" else "sample"


class TestAgent(ChatSuite):
    model_name = "agent"
    structured_output_method = "function_calling"


class TestToolsInTheTemplate(ChatSuite):
    model_name = "sample-tools"


class TestNoToolsInTheTemplate(TestToolsInTheTemplate):
    model_name = "sample"
