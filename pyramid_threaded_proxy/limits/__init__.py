"""How much there may be at once: exchanges, descriptors; and what is in flight."""
