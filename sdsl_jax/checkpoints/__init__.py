"""Loaded models: weights with their tokenizer and record, from our own folders or from published formats."""
