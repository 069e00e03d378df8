"""What both ends compute alike: gradients and the statistics of batch normalization."""
