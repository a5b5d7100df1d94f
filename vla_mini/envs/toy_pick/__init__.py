"""A table-top pick task, drawn and simulated in NumPy: `vla_mini/ToyPick-v0`."""
