"""Rows to batches: read, put into a conversation, rendered by a template, tokenised, stored, ordered, collated."""
