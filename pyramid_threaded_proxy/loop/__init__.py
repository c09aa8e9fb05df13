"""Threads, waiting and time: what runs an exchange, and knows none."""
