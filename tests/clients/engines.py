"""The engines that the clients talk to, all behind one server.

`echo` repeats the last message, so that a test writes the answer itself. `sample` is the model of
the package; its template knows no tools. `sample-tools` is the same model under a template that
does. `agent` calls the first tool that it is given, once, with values of the right types, and then
answers with the tool's result: what agents ask of a model, without a model that can do it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from deepinfer.__main__ import main
from deepinfer.manifest import TOKENIZER_DIR, read_engine, record_files, write_manifest
from tests.server.serving import make_echo_engine

ECHO_TEMPLATE = (
    "{# calls are <tool_call> {name, arguments} </tool_call>, thoughts <think> </think> #}"
    "{% if tools %}{% endif %}{{ messages[-1].content }}"
)
AGENT_TEMPLATE = """\
{#- calls are <tool_call> {name, arguments} </tool_call> -#}
{%- if tools and messages[-1].role == "user" -%}
{%- set made = namespace(values={}) -%}
{%- set parameters = tools[0].function.parameters or {} -%}
{%- for name, schema in (parameters.properties or {}).items() -%}
{%- set said = "Oslo" if "weather" in messages[-1].content else messages[-1].content -%}
{%- set value = 3 if schema.type == "integer" else said -%}
{%- set made.values = dict(made.values, **{name: value}) -%}
{%- endfor -%}
<tool_call>
{{ {"name": tools[0].function.name, "arguments": made.values} | tojson }}
</tool_call>
{%- else -%}
{{ messages[-1].content }}
{%- endif -%}
"""
TOOLS_TEMPLATE = """\
{%- if tools -%}
<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Calls are <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content or "" }}
{%- for call in message.tool_calls or [] -%}
<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""


def make_engines(folder: Path) -> None:
    make_echo_engine(folder / "echo", model_id="echo", name="echo", chat_template=ECHO_TEMPLATE)
    make_echo_engine(folder / "agent", model_id="agent", name="agent", chat_template=AGENT_TEMPLATE)
    options = ["--model", "sample", "--output", str(folder), "--name", "sample", "--target", "cpu"]
    assert main(["build", *options]) == 0
    copy_with_template(folder / "sample", folder / "sample-tools", TOOLS_TEMPLATE)


def copy_with_template(engine: Path, copy: Path, chat_template: str) -> None:
    """The same engine under another chat template; its name and its model's are the folder's."""
    shutil.copytree(engine, copy)
    (copy / TOKENIZER_DIR / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    manifest = read_engine(engine).manifest
    changes = {
        "name": copy.name,
        "model": manifest.model.model_copy(update={"id": copy.name}),
        "files": record_files(copy),
    }
    write_manifest(copy, manifest.model_copy(update=changes))
