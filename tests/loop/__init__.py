"""Tests of `pyramid_threaded_proxy.loop`: threads, waiting and time."""
