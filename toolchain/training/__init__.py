"""Training: one loop for sparse training and fine-tuning, resumable, with its history on disk."""
