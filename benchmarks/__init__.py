"""What it costs, and whether it is right, measured beside the peers."""
