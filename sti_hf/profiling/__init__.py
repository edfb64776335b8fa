"""What planning needs to know, measured by running."""
