"""Data sets, clips and metrics; knows nothing of the model."""
