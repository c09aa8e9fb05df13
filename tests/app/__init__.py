"""Tests of `pyramid_threaded_proxy.app`: Pyramid: from configuration to a response."""
