"""The ops, one module each; `mahal` offers their functions by name."""
