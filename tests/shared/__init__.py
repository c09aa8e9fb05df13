"""Tests of the room `shared`."""
