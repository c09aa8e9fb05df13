"""Waitress's channel: taken out of waitress's hands for an exchange, and given back."""
