"""Says what is wrong with a stack, embedded or composed, and what to change."""
