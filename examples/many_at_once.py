"""Send many prompts at once, batched in flight: python examples/many_at_once.py 16."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from openai import AsyncOpenAI

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")


async def ask(client: AsyncOpenAI, model: str, question: str) -> int:
    """The number of tokens in the answer."""
    answer = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=64
    )
    assert answer.usage is not None
    return answer.usage.completion_tokens


async def main() -> None:
    num_requests = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    key = os.environ.get("OPENAI_API_KEY", "not-needed")
    async with AsyncOpenAI(base_url=BASE_URL, api_key=key) as client:
        model = (await client.models.list()).data[0].id
        started_at = time.perf_counter()
        questions = [f"What is {i} + {i}?" for i in range(num_requests)]
        counts = await asyncio.gather(*(ask(client, model, text) for text in questions))
        elapsed_s = time.perf_counter() - started_at
    print(f"{num_requests} answers, {sum(counts)} tokens, {elapsed_s:.1f} s")


if __name__ == "__main__":
    asyncio.run(main())
