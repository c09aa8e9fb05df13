"""Tests of the documentation: what it says, and what it shows."""
