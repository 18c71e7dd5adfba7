"Semantic segmentation, paper by paper: the networks, losses, metrics and data sets of the course."
__version__ = "0.1.0"
