"""What is read, when, and to where."""
