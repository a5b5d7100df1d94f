"""Drawings of arrays and numbers as inline SVGs, which know nothing of runs and results."""
