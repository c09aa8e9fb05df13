"""Upstreams: where they are, the connections to them, and how they have been doing. The one room that knows urllib3."""
