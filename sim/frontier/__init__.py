"""The best accuracy at every uplink budget: ours, image codecs, gradients, published results."""
