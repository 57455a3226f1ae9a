"""Policies: loading, packed batches, packed attention, and the streamed LM head."""
