"""One rewrite or lowering a module."""
