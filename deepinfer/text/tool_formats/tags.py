"""The tags of formats that write a call's arguments one by one, and not as a JSON object.

Parsers and grammars of forced calls take them from here. How a value is read is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

OPENING = "<tool_call>"
CLOSING = "</tool_call>"


@dataclass(frozen=True)
class Tags:
    """What stands around names and values. Between all of them there may be white space.

    `is_value_on_lines` says that the line breaks next to a value belong to its tags.
    """

    before_name: str
    after_name: str
    before_key: str
    after_key: str
    before_value: str
    after_value: str
    end: str
    is_value_on_lines: bool


# <tool_call> <function=f> <parameter=a> 1 </parameter> </function> </tool_call>
QWEN_CODER = Tags(
    before_name="<function=",
    after_name=">",
    before_key="<parameter=",
    after_key=">",
    before_value="",
    after_value="</parameter>",
    end="</function>",
    is_value_on_lines=True,
)
# <tool_call>f <arg_key>a</arg_key> <arg_value>1</arg_value> </tool_call>
GLM = Tags(
    before_name="",
    after_name="",
    before_key="<arg_key>",
    after_key="</arg_key>",
    before_value="<arg_value>",
    after_value="</arg_value>",
    end=CLOSING,
    is_value_on_lines=False,
)
