"""Pure bytes and text: the rules of HTTP. It knows no sockets, clocks, threads or Pyramid."""
