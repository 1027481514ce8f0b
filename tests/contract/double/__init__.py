"""A double of `tensorrt_llm` and `tensorrt`, made from the files in `tests/contract/recorded`.

Names, signatures, defaults, enum members and messages come from the record. This package holds
what a record cannot: the order in which things are checked, what is written when an engine is
built, and an executor that runs a toy model. It imports neither torch nor anything of DeepInfer.

`tests/contract/installing.py` puts it where `import tensorrt_llm` finds it.
"""
