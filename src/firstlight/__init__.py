"""firstlight: pretrain a language model from nothing. Importing this package does nothing."""

__version__ = "0.1.0"
