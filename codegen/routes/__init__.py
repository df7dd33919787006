"""Routed plan -> the source of its routes: what they score, select, and attend to."""
