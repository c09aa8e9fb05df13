"""What an operator sees: one place that counts, and what is made of it (metrics, page, JSON)."""
