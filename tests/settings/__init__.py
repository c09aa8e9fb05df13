"""Tests of `pyramid_threaded_proxy.settings`: what is read of ini and YAML."""
