"""The client reads a stream wherever the network cuts it."""

from __future__ import annotations

from lib.loadtest.client import EventReader


def test_events_are_found_wherever_the_network_cuts():
    data = 'data: {"é": 1}\r\n\r\n: ping\n\ndata:[DONE]\n\n'.encode()
    for size in range(1, len(data) + 1):
        reader = EventReader()
        found = [e for i in range(0, len(data), size) for e in reader.feed(data[i : i + size])]
        assert found == ['{"é": 1}', "[DONE]"]
