"""Training: the trainer and what it adds to that of transformers."""
