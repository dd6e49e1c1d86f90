"""What the model sees: one definition for training, batch and online."""
