"""Twelve short exercises on gradients, each a file with a gap or a mistake, and their judge: docs/exercises.md."""
