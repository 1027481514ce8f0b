"""DeepInfer compiles Hugging Face checkpoints into engines, and serves engines over HTTP."""

__version__ = "0.1.0"
