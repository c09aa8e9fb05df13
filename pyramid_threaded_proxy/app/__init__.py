"""Pyramid: from the configuration to a response."""
