"""The text side of a checkpoint: tokenizer, special tokens, stop tokens and chat templates, from all files that say something about them.

Only this package knows those files. A Hugging Face directory is read as transformers' AutoTokenizer reads it, a GGUF as llama.cpp does.
"""
