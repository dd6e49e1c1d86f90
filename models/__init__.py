"""What learns: plain torch."""
