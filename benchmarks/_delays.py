"""A TCP proxy on loopback that simulates a round-trip time.

A connection is established one round trip after it was opened, and data arrives half a round trip after it was sent.
The bandwidth is not limited.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading


async def _relay(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float, not_before: float
) -> None:
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]](1024)

    async def deliver() -> None:
        while True:
            when, data = await pieces.get()
            await asyncio.sleep(when - loop.time())
            if not data:
                break
            writer.write(data)
            await writer.drain()
        writer.close()

    delivery = asyncio.create_task(deliver())
    try:
        while data := await reader.read(256 * 1024):
            await pieces.put((max(loop.time(), not_before) + delay, data))
    except OSError:
        pass
    await pieces.put((loop.time() + delay, b""))
    await asyncio.gather(delivery, return_exceptions=True)


async def _serve(target: int, round_trip: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        established_at = asyncio.get_running_loop().time() + round_trip
        upstream = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(
            _relay(reader, upstream[1], round_trip / 2, established_at),
            _relay(upstream[0], writer, round_trip / 2, 0.0),
        )

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=2048)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="the port of the server")
    parser.add_argument("--round-trip", type=float, required=True, help="seconds of a round trip")
    arguments = parser.parse_args()
    serving = threading.Thread(
        target=asyncio.run, args=(_serve(arguments.port, arguments.round_trip),), daemon=True
    )
    serving.start()
    for _ in sys.stdin:  # until the parent closes it
        pass


if __name__ == "__main__":
    main()
