"""Echo, with its HTML page: an endpoint of one's own, and the same as a handler.

Run it:  hubbub serve --app examples.echo:app      then open http://127.0.0.1:8000
Send     hello  to ws://127.0.0.1:8000/mine                            and get  Message received: hello
Send     {"type": "echo", "text": "hello"}  to ws://127.0.0.1:8000/ws
         and get  {"type": "echo.reply", "data": "Message received: hello"}
"""

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse

from hubbub import Hubbub

app = FastAPI(title="Echo")
hub = Hubbub(app, dev=True)

PAGE = """<!DOCTYPE html>
<html lang="en">
<title>WebSocket test</title>
<h1>WebSocket test</h1>
<form id="form"><input id="text" placeholder="Enter message" autocomplete="off"> <button>Send</button></form>
<ul id="messages"></ul>
<script>
  const ws = new WebSocket(location.href.replace(/^http/, "ws").replace(/[^/]*$/, "mine"));
  ws.onmessage = (event) => {
    const line = document.createElement("li");
    line.textContent = event.data;
    document.getElementById("messages").append(line);
  };
  document.getElementById("form").onsubmit = (event) => {
    event.preventDefault();
    const input = document.getElementById("text");
    ws.send(input.value);
    input.value = "";
  };
</script>
</html>
"""


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


@app.websocket("/mine")
async def mine(websocket: WebSocket) -> None:
    """Plain FastAPI: it goes on working beside Hubbub, on the same fast transport."""
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(f"Message received: {await websocket.receive_text()}")
    except WebSocketDisconnect:
        pass


@hub.on("echo", anonymous=True)
async def echo(text: str) -> str:
    """The same as a handler; anonymous: it may come before auth."""
    return f"Message received: {text}"
