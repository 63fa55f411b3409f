"""One module per op."""
