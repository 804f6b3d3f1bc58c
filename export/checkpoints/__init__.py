"""Reads checkpoints: Hugging Face directories, GGUF files, EAGLE-3 drafts and their tokenizers."""
