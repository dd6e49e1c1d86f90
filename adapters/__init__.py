"""The outside world, named by role."""
