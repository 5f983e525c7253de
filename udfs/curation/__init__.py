"""What curation finds in trajectories, and the order in which training sees them."""
