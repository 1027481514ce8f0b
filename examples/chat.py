"""Ask one question and print the answer: python examples/chat.py "Tell me a story"."""

from __future__ import annotations

import os
import sys

from openai import OpenAI

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")


def main() -> None:
    question = sys.argv[1] if len(sys.argv) > 1 else "Tell me a story"
    client = OpenAI(base_url=BASE_URL, api_key=os.environ.get("OPENAI_API_KEY", "not-needed"))
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}]
    )
    print(answer.choices[0].message.content)


if __name__ == "__main__":
    main()
