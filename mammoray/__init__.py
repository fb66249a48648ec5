"""mammoray: distributed training of breast-density classifiers on Ray. Research software, not a medical device."""

__version__ = "0.1.0"
