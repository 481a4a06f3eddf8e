"""What an update gives away about the examples behind it."""
