"""Chat templates in the styles of real checkpoints, each using what templates in the wild use."""

from __future__ import annotations

LLAMA_3 = """
{{- bos_token }}
{%- if date_string is not defined %}{% set date_string = "1 Jan 2025" %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) + "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

CHATML = """
{% for message in messages %}
    {% if loop.first and message.role != 'system' %}
<|im_start|>system
You are a helpful assistant.<|im_end|>
    {% endif %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}
<think></think>
{% endif %}
{% endif %}
"""

MISTRAL = """
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant.') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('Only user and assistant may speak, not ' + message['role']) }}
    {%- endif %}
{%- endfor %}
"""

DATED = """{{ strftime_now('%d %B %Y') }}|{% for m in messages %}{{ m.content }}|{% endfor %}"""

JSON = """
{%- for m in messages %}{{ m | tojson }}
{{ m | tojson(indent=2, sort_keys=true) }}
{{ m | tojson(ensure_ascii=true, separators=(',', ':')) }}
{% endfor %}
"""

LOOPS = """
{%- for m in messages %}
    {%- if m.role == 'system' %}{% continue %}{% endif %}
    {%- if loop.index > 4 %}{% break %}{% endif %}
    {{- loop.index ~ m.role }};
{%- endfor %}
"""

NAMESPACE = """
{%- set ns = namespace(last=-1, seen=[]) %}
{%- for m in messages if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endfor %}
{%- for m in messages %}
    {%- generation %}
        {%- set inside = true %}
        {{- '>' if loop.index0 == ns.last else '-' }}
        {{- m.content.split('</think>')[-1].lstrip('\\n') }}
    {%- endgeneration %}
    {{- inside is defined }}
{%- endfor %}
"""

MACROS = """
{%- macro turn(role, text) %}<{{ role }}>{{ text }}</{{ role }}>{% endmacro %}
{%- for role, turns in messages | groupby('role') %}{{ role }}{{ turns | length }} {% endfor %}
{%- for m in messages | selectattr('role', 'equalto', 'user') %}
    {{- turn(m.role, m.content | e) }}
{%- endfor %}
{%- for m in messages[::-1] %}{{ m.content.upper()[:3] }}{{ m.get('name', '?') }}{% endfor %}
{%- for key, value in messages[0].items() %}{{ key }}={{ value }}{% endfor %}
{{- unk_token }}{{ nothing_at_all }}{{ tools is defined }}{{ documents is none }}
"""

ALL = {
    "llama-3": LLAMA_3,
    "chatml": CHATML,
    "mistral": MISTRAL,
    "dated": DATED,
    "json": JSON,
    "loops": LOOPS,
    "namespace": NAMESPACE,
    "macros": MACROS,
}
