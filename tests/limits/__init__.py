"""Tests of `pyramid_threaded_proxy.limits`: what there may be at once."""
