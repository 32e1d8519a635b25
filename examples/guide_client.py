"""The guide's integration client, unchanged but for the token: connect, `auth` → `auth_success`, `chat_message` → `message`.

Run it:  hubbub serve                                        in one terminal, and in another, in the same directory:
         python examples/guide_client.py "$(hubbub token alice)"
"""

import asyncio
import json
import sys

import websockets


async def test_websocket_integration(token: str, uri: str = "ws://localhost:8000/ws") -> None:  # noqa: PT028
    async with websockets.connect(uri) as websocket:
        # Send authentication
        await websocket.send(json.dumps({"type": "auth", "token": token}))

        # Receive auth response
        response = await websocket.recv()
        auth_data = json.loads(response)
        assert auth_data["type"] == "auth_success"

        # Send chat message
        await websocket.send(json.dumps({"type": "chat_message", "message": "Hello World"}))

        # Receive message
        response = await websocket.recv()
        message_data = json.loads(response)
        assert message_data["type"] == "message"
        print(message_data)


if __name__ == "__main__":
    asyncio.run(test_websocket_integration(*sys.argv[1:]))
