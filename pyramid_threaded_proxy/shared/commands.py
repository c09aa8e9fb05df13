"""What is said to Redis. Scripts run whole or not at all, and one clock counts: Redis's own.

========================  =================================================================================
`pproxy:processes`        sorted set: each joining of a process, by the end of its lease
`pproxy:places:JOINING`   hash: how many places each user has there; expires with the lease
`pproxy:closings`         stream: what was closed, and how long before it was said
`pproxy:reports`          hash: what each process says of itself; `pproxy:reported` is a sorted set of when
`pproxy:birth`            a word that is another one once the data were lost
========================  =================================================================================

A process joins under a new name each time: a command that Redis finds in a closed connection's socket, after a pause,
is one of a process that is not there any more. The first thing that each script writes takes memory: a full Redis
refuses that, and can't refuse any more what a script does once it has written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Command = tuple[Any, ...]

#: Seconds after which the places of a process that says nothing are free again.
LEASE = 5.0
#: Answers to `take`; the last one to whatever a process says whose lease has run out.
TAKEN, NONE_LEFT, NOT_THERE = 1, 0, -1
#: What all processes say of themselves.
REPORTS: Command = ("HGETALL", "pproxy:reports")
#: Closings that are kept for processes that were away; how long, in seconds, if nothing is closed meanwhile.
MOST_CLOSINGS = 10_000
CLOSINGS_KEPT = 86_400.0

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
_ALIVE = (
    _NOW
    + """
local mine = redis.call('ZSCORE', 'pproxy:processes', ARGV[1])
if not mine or tonumber(mine) <= now then return -1 end
local places = 'pproxy:places:' .. ARGV[1]
"""
)
_JOIN = (
    _NOW
    + """
local places = 'pproxy:places:' .. ARGV[2]
redis.call('ZADD', 'pproxy:processes', now + ARGV[3], ARGV[2])
for at = 5, #ARGV, 2 do redis.call('HSET', places, ARGV[at], ARGV[at + 1]) end
redis.call('PEXPIRE', places, ARGV[3])
redis.call('ZREM', 'pproxy:processes', ARGV[1])
redis.call('DEL', 'pproxy:places:' .. ARGV[1])
redis.call('SET', 'pproxy:birth', ARGV[4], 'NX')
return redis.call('GET', 'pproxy:birth')
"""
)
_BEAT = (
    _ALIVE
    + """
redis.call('ZADD', 'pproxy:processes', now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', places, ARGV[2])
redis.call('ZREMRANGEBYSCORE', 'pproxy:processes', '-inf', string.format('%.0f', now))
return 1
"""
)
_TAKE = (
    _ALIVE
    + """
local taken = 0
for _, name in ipairs(redis.call('ZRANGEBYSCORE', 'pproxy:processes', string.format('(%.0f', now), '+inf')) do
  taken = taken + (redis.call('HGET', 'pproxy:places:' .. name, ARGV[3]) or 0)
end
if taken >= tonumber(ARGV[4]) then return 0 end
redis.call('HINCRBY', places, ARGV[3], 1)
redis.call('PEXPIRE', places, ARGV[2])
return 1
"""
)
_TELL = (
    _ALIVE
    + """
for at = 3, #ARGV, 2 do
  if redis.call('HINCRBY', places, ARGV[at], ARGV[at + 1]) == 0 then redis.call('HDEL', places, ARGV[at]) end
end
redis.call('PEXPIRE', places, ARGV[2])
return 1
"""
)
_LEAVE = """
redis.call('ZREM', 'pproxy:processes', ARGV[1])
redis.call('DEL', 'pproxy:places:' .. ARGV[1])
return 1
"""
_REPORT = (
    _NOW
    + """
redis.call('HSET', 'pproxy:reports', ARGV[1], ARGV[3])
redis.call('ZADD', 'pproxy:reported', now, ARGV[1])
for _, name in ipairs(redis.call('ZRANGEBYSCORE', 'pproxy:reported', '-inf', string.format('%.0f', now - ARGV[2]))) do
  redis.call('HDEL', 'pproxy:reports', name)
  redis.call('ZREM', 'pproxy:reported', name)
end
redis.call('PEXPIRE', 'pproxy:reports', ARGV[2])
redis.call('PEXPIRE', 'pproxy:reported', ARGV[2])
return 1
"""
)
_FORGET_REPORT = """
redis.call('HDEL', 'pproxy:reports', ARGV[1])
redis.call('ZREM', 'pproxy:reported', ARGV[1])
return 1
"""
_LEASE = int(LEASE * 1000)


def _script(text: str, *arguments: Any) -> Command:
    return ("EVAL", text, 0, *arguments)


def join(former: str, name: str, birth: str, places: Mapping[str, int]) -> Command:
    """Be there as `name`, with these places, and as `former` no longer; answers with the birth that counts."""
    return _script(_JOIN, former, name, _LEASE, birth, *(part for pair in places.items() for part in pair))


def beat(name: str) -> Command:
    """Renew the lease; -1 where it has run out."""
    return _script(_BEAT, name, _LEASE)


def take(name: str, field: str, most: int) -> Command:
    """Take a place: 1, or 0 where all processes together have `most`, or -1 where the lease has run out."""
    return _script(_TAKE, name, _LEASE, field, most)


def tell(name: str, changes: Iterable[tuple[str, int]]) -> Command:
    """So many places more, or fewer; -1 where the lease has run out."""
    return _script(_TELL, name, _LEASE, *(part for pair in changes for part in pair))


def leave(name: str) -> Command:
    """Be there no longer; the places are free at once."""
    return _script(_LEAVE, name)


def say(process: str, age: float, what: Mapping[str, str]) -> tuple[Command, Command]:
    """What was closed `age` seconds ago."""
    fields = ("process", process, "age", int(age * 1000), "what", json.dumps(what))
    add = ("XADD", "pproxy:closings", "MAXLEN", "~", MOST_CLOSINGS, "*", *fields)
    return add, ("PEXPIRE", "pproxy:closings", int(CLOSINGS_KEPT * 1000))


#: What a closing may go by.
_SELECTORS = {"userid", "route", "request_id"}


class Said(NamedTuple):
    """A closing as Redis has it: when, in milliseconds by its clock; `what` is what `close` was given."""

    process: str
    when: int
    what: dict[str, str]


def hear(last: str, patience: float) -> Command:
    """What was closed since `last`, once there is something, `patience` seconds at most."""
    return ("XREAD", "COUNT", 1000, "BLOCK", int(patience * 1000), "STREAMS", "pproxy:closings", last)


def heard(answer: Any) -> tuple[str | None, list[Said]]:
    """The id of the last entry that `hear` was answered with, and the closings; what is none is left out."""
    found, last = [], None
    for _, entries in answer or ():
        for entry, fields in entries:
            last = entry.decode()
            try:
                when = int(last.partition("-")[0]) - int(fields[b"age"])
                said = Said(fields[b"process"].decode(), when, json.loads(fields[b"what"]))
            except (KeyError, ValueError):
                continue
            if said.what and set(said.what) <= _SELECTORS:  # what says nothing must not end everything
                found.append(said)
    return last, found


def milliseconds(time: Any) -> int:
    """The answer to ``TIME`` as a number."""
    return int(time[0]) * 1000 + int(time[1]) // 1000


def report(process: str, kept: float, text: str) -> Command:
    """What a process says of itself; forgotten after `kept` seconds."""
    return _script(_REPORT, process, int(kept * 1000), text)


def forget_report(process: str) -> Command:
    """It says nothing of itself any more."""
    return _script(_FORGET_REPORT, process)
