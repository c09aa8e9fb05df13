"""Tests of `pyramid_threaded_proxy.detach`: all of waitress."""
