"""Decoding beside Hugging Face transformers, and beside what the machine's memory and arithmetic allow."""
