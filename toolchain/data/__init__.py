"""Data sources, preprocessing, augmentation and batches."""
