"""What curation knows of trajectories beside their ratings."""
