"""Infer: answers of a model, in batches, as a stream, in a chat."""
