"""What a command line runs: recipe and options, model, training and evaluation, detection."""
