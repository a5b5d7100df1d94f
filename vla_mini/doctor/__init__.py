"""Finds what is wrong with a training run before hours are spent on it: settings, demonstrations, policy -> findings."""
