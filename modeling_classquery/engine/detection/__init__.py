"""Detection in whole videos, and what is written and drawn of it."""
