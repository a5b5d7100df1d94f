"""One module per exercise: what the student's file says, its solution, and below `# ---- judge` the check (catalogue.py)."""
