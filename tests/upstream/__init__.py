"""Tests of `pyramid_threaded_proxy.upstream`: connections, TLS, balance and health."""
