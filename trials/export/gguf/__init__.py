"""Writes checkpoints as GGUF files, llama.cpp's format: one file for each thing that llama.cpp wants another way."""
