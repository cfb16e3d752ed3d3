"""What repeats: epochs, batches, passes over the data."""
