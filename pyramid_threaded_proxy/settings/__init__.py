"""From ini, YAML and keyword arguments to frozen settings, with every mistake named at once."""
