"""What runs the parts."""
