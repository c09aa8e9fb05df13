"""Tests of `pyramid_threaded_proxy.relay`: one exchange."""
