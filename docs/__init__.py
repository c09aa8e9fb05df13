"""The pages; `docs.tools` makes some of them, and the site of them all."""
