"""Tests of `pyramid_threaded_proxy.http`: bytes alone."""
