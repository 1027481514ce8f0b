"""Bodies that once stopped the process that serves everybody: what they cost grows as they do."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from deepinfer.server.messages_api.body import PromptBody
from deepinfer.server.messages_api.conversation import as_chat
from deepinfer.server.responses_api.conversation import as_messages
from deepinfer.server.responses_api.items import FunctionCallItem, ReasoningItem, ReasoningText
from deepinfer.text.call_grammar import make_call_grammar
from deepinfer.text.ebnf_grammar import make_ebnf_grammar
from deepinfer.text.grammar_tree import GrammarRefused
from deepinfer.text.json_schema import SchemaRefused
from deepinfer.text.tool_calls import ToolFormat
from deepinfer.text.tool_schema import Tool

GROWTH = 4  # of the input, between two measurements
# Of the time: 4 for what is linear, 16 for what is quadratic. Half way, on a logarithmic scale.
MAX_GROWTH = 8


def cpu_time_s(work: Callable[[], object], num_runs: int = 5) -> float:
    """Of the fastest of some runs, so that what else runs here has no part in it."""
    times = []
    for _ in range(num_runs):
        started_at = time.thread_time()
        work()
        times.append(time.thread_time() - started_at)
    return min(times)


def chain_of_rules(num_rules: int) -> Callable[[], object]:
    """Each leads to the next, and only the last has a text."""
    rules = [f"r{i} ::= r{i + 1}" for i in range(num_rules)]
    text = "\n".join(["root ::= r0", *rules, f'r{num_rules} ::= "a"'])
    return lambda: make_ebnf_grammar(text)


def rule_of_many_names(num_rules: int) -> Callable[[], object]:
    """The root needs all others, each of which needs the one before it."""
    names = " ".join(f"r{i}" for i in reversed(range(num_rules)))
    rules = [f"r{i} ::= r{i - 1}" for i in range(1, num_rules)]
    text = "\n".join([f"root ::= {names}", 'r0 ::= "a"', *rules])
    return lambda: make_ebnf_grammar(text)


def turns_of_one_role(num_turns: int) -> Callable[[], object]:
    text = "\N{GRINNING FACE}" + "x" * 500  # which makes each character of the whole take 4 bytes
    messages = [{"role": "user", "content": text}] * num_turns
    body = PromptBody.model_validate({"messages": messages})
    return lambda: as_chat(body)


def thoughts_between_calls(num_calls: int) -> Callable[[], object]:
    thoughts = [ReasoningText(text="\N{GRINNING FACE}" + "x" * 500)]
    thought = ReasoningItem(id="rs", content=thoughts)
    call = FunctionCallItem(id="fc", call_id="c", name="f", arguments="{}")
    return lambda: as_messages(None, [thought, call] * num_calls)


@pytest.mark.parametrize(
    ("make_work", "size"),
    [
        (chain_of_rules, 450),
        (rule_of_many_names, 450),
        (turns_of_one_role, 2_000),
        (thoughts_between_calls, 1_000),
    ],
)
def test_time_grows_with_the_body_and_not_with_its_square(
    make_work: Callable[[int], Callable[[], object]], size: int
) -> None:
    small, large = cpu_time_s(make_work(size)), cpu_time_s(make_work(size * GROWTH))
    assert large / small < MAX_GROWTH


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("root ::= a b\na ::= b\nb ::= a", "root"),
        ('root ::= "x" a*\na ::= a | "y" a', "a"),
        ('root ::= ("x" a)? "y"\na ::= "z" a', "a"),
    ],
)
def test_rule_without_a_text_is_refused_wherever_it_is_used(text: str, name: str) -> None:
    with pytest.raises(GrammarRefused, match=f"`{name}` no text of which comes to an end"):
        make_ebnf_grammar(text)


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "x" root | "y"',
        "root ::= root*",
        'root ::= a | "x"\na ::= root "z"',
        'root ::= a a a\na ::= b | a a\nb ::= "x" | b b',
    ],
)
def test_rule_that_may_lead_to_itself_but_has_a_text_is_taken(text: str) -> None:
    assert "own_root ::=" in make_ebnf_grammar(text)


def many_tools(num_parameters: int) -> list[Tool]:
    names = [f"parameter_{i}" for i in range(num_parameters)]
    properties = {name: {"type": "string", "maxLength": 40} for name in names}
    schema = {"type": "object", "properties": properties, "required": names}
    return [Tool(f"tool_{k}", schema) for k in range(128)]


@pytest.mark.parametrize("tool_format", list(ToolFormat))
def test_tools_too_many_for_a_grammar_are_refused_before_all_are_read(
    tool_format: ToolFormat,
) -> None:
    def refuse(num_parameters: int) -> Callable[[], object]:
        tools = many_tools(num_parameters)

        def work() -> None:
            with pytest.raises(SchemaRefused, match="5,000 rules"):
                make_call_grammar(tools, tool_format, parallel=True)

        return work

    small, large = cpu_time_s(refuse(100), num_runs=2), cpu_time_s(refuse(400), num_runs=2)
    assert large / small < MAX_GROWTH / 2  # four times as much to read
