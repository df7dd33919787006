"""The intermediate representations: expressions, patterns, block masks, kernel plans."""
