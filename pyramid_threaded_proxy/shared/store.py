"""One connection to Redis or Valkey: commands in one round trip, and one error for whatever goes wrong."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from pyramid_threaded_proxy.exceptions import ProxyError
from pyramid_threaded_proxy.shared.commands import Command


class StoreAway(ProxyError):
    """It can't be reached, did not answer in time, or refused a command, being full for one. No secrets in its text."""


class Store:
    """A connection that is made with the first command. One thread's, but for `close`."""

    def __init__(self, url: str, timeout: float) -> None:
        """`timeout` is in seconds, for each wait for the network."""
        self._client = Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),  # who waits decides itself whether to ask again
            protocol=2,
            client_name="pyramid_threaded_proxy",
        )

    def ask(self, *commands: Command) -> list[Any]:
        """Their answers, in order. Raises `StoreAway`, and then nobody knows which of them were carried out."""
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                answers: list[Any] = pipeline.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            raise StoreAway(str(error) or type(error).__name__) from error
        for answer in answers:
            if isinstance(answer, Exception):
                raise StoreAway(str(answer)) from answer
        return answers

    def close(self) -> None:
        """Close the connection. Any thread: whoever waits for an answer gets `StoreAway`."""
        self._client.connection_pool.disconnect()
