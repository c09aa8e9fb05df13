"""Waitress's channel: taken out of waitress's hands for an exchange, and given back.

The one room that knows waitress's inside. What it relies on, beyond the documented API, in waitress 3.x:

* ``BaseWSGIServer.channel_class``, ``HTTPChannel.task_class`` and ``parser_class``;
  ``environ["waitress.client_disconnected"]`` is a method bound to the live channel;
* ``HTTPChannel``: ``service`` (lets a BaseException of its task pass, so that its epilogue is skipped; what that does),
  ``requests``, ``requests_lock``, ``outbuf_lock`` (re-entrant), ``total_outbufs_len``, ``current_outbuf_count``,
  ``_flush_some`` (sends bytes with ``send``), ``connected``, ``socket``, ``_fileno`` (None once closed), ``_map``,
  ``server``, ``adj``, ``addr``, ``will_close``, ``close_when_flushed``, ``readable`` (what it looks at),
  ``handle_read`` (reads with ``recv``), ``handle_close``, ``close``, ``writable`` (what it looks at), ``write_soon``
  (flushes at once, and pulls the trigger where some is left);
* ``WSGITask``: ``finish``, ``service``, ``wrote_header``, ``status``, ``response_headers``, ``close_on_finish``,
  ``set_close_on_finish``, ``build_response_header`` (reads ``request.headers["CONNECTION"]``), ``write`` (writes the
  head, and then the body, each with ``write_soon``);
* ``BaseWSGIServer``: ``active_channels``, ``trigger`` (``pull_trigger(thunk)`` runs the thunk on the main thread;
  its ``_physical_pull``, ``recv`` (before the thunks), ``close``, ``_closed``), ``adj.ident``, ``adj.trusted_proxy``,
  ``adj.trusted_proxy_headers``, ``adj.asyncore_use_poll``;
* ``Adjustments``: ``asyncore_use_poll``, ``recv_bytes`` and ``connection_limit`` are attributes of the class, with
  waitress's defaults; what a server is told is set on the instance (see `defaults`);
* of a process that stops: ``wasyncore.loop``, ``wasyncore.dispatcher.close``; ``BaseWSGIServer``: ``socket``,
  ``readable``, ``handle_accept``, ``adj.backlog``, ``task_dispatcher`` (``queue``, ``active_count``); the trigger's
  ``handle_read`` (KeyboardInterrupt that is raised behind its thunks ends the loop); ``HTTPChannel``: ``request`` (one
  that is partly received), ``creation_time``, ``last_activity`` (the same until something is received);
* ``ThreadedTaskDispatcher``: ``queue`` (a deque of channels, used by ``append``, ``popleft`` and its length, under
  ``lock``), ``queue_cv`` (what its threads wait for while that is empty), ``threads`` (empty behind the last one);
* of a crowd: ``BaseWSGIServer.handle_accept`` takes one connection, is found on the instance, and adds to ``_map`` what
  it took; ``wasyncore`` asks the trigger's ``readable`` once at the beginning of each turn;
* of channels that rest: an entry of ``_map`` is asked for ``readable`` and ``writable`` in each turn that begins with
  it, has ``accepting``, and hears by ``handle_read_event``; ``wasyncore.readwrite`` (takes poll's bits, which are
  epoll's); ``HTTPChannel.del_channel`` (before the socket is closed); ``BaseWSGIServer.readable`` runs its maintenance,
  which sets ``will_close``, and moves ``next_channel_cleanup`` on before that;
* ``HTTPRequestParser``: ``received``, ``parse_header``, ``headers``, ``chunked``, ``completed``, ``version``,
  ``connection_close``, ``error``, ``get_body_stream``, ``body_rcv``; ``HTTPChannel.received`` makes one for each
  request, and stops where it is told that all bytes were taken;
* of bodies that are read late: a parser that says it is ``completed`` with its head is handed over; told otherwise it
  goes on with ``received``, and says ``error``; ``content_length``, ``expect_continue``, ``command``, ``path``, ``adj``
  (``url_prefix``, ``max_request_body_size``, ``channel_timeout``); ``WSGITask.get_environment`` (how it makes
  PATH_INFO), ``HTTPChannel.error_task_class``, ``write_soon``; ``utilities.BadRequest``.

``tests/detach/test_waitress_contract.py`` fails the day one of these changes.
"""
