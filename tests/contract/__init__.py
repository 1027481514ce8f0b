"""TensorRT-LLM as it is recorded, a double of it, and the adapters that are held to both."""
