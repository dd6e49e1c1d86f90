"""The embedded stack: real servers from Python wheels."""
