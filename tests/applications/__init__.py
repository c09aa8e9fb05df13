"""Whole applications and add-ons that Pyramid sites have, each under pserve and driven from outside."""
