"""What makes pages and the site of them; nothing here belongs to the package."""
