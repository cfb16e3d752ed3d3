"""What a run is made of, and where it stands."""
