"""One exchange: what goes up, what comes down, and who gets it."""
