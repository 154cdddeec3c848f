"""What puts model and data to work: training, evaluation, detection in whole videos, drawing."""
