"""What curation works out of trajectories, and the order in which training sees them: pure
functions over Arrow."""
