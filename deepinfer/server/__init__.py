"""The HTTP side: from bytes to GenerationRequests, and from TokenChunks back to bytes."""
