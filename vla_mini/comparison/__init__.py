"""Variants x seeds, trained under one budget and evaluated on the same scenes: settings -> what comparison.json holds."""
