"""From a checkpoint to an engine folder: plan, compile, write.

Compiling and serving meet only in the folder that this package writes.
"""
