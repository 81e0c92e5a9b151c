"""Weight sparsity: set weights of the decoder layers to zero, chosen by a calibration text."""
