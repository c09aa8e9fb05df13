"""What the processes of a site know of each other by way of Redis: users' places, closings, reports."""
