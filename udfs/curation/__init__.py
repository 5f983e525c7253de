"""What curation works out of trajectories before a recipe chooses: pure functions over Arrow."""
