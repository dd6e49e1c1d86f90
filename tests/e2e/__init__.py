"""From source rows to a retrained champion, through the real scheduler."""
