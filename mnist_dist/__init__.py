"""mnist_dist: train a CNN on MNIST from one CPU process to many machines, by configuration alone."""

__version__ = "0.1.0"
