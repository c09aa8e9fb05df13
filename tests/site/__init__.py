"""Tests that need a whole application, most of them one in a process of its own."""
