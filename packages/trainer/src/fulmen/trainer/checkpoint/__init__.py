"""What is kept of a run, under which name, and how it is found again."""
