"""What an operator sees: counting, history, metrics, the page and its actions."""
