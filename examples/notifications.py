"""Live notifications: the two endpoints of the guide (they want a key here), and one's own code that notifies.

Run it:  HUBBUB_API_KEYS=a-key-of-my-own-1234 hubbub serve --app examples.notifications:app
Connect: ws://127.0.0.1:8000/ws?token=…  (POST /api/dev/login {"name": "alice"}), from as many devices as you like
         curl -X POST -H 'Authorization: Bearer a-key-of-my-own-1234' \\
              'http://127.0.0.1:8000/api/notifications/send?user_id=alice&title=Hello&message=World'
         and every device gets  {"type": "notification", "data": {"title": "Hello", …}}
         …/api/notifications/broadcast?title=…&message=… reaches everybody.
         curl -X POST 'http://127.0.0.1:8000/orders/7/pay?customer=alice'           notifies from an endpoint of the app
"""

from fastapi import BackgroundTasks, FastAPI

from hubbub import Hubbub

app = FastAPI(title="Notifications")
hub = Hubbub(app, dev=True)


@app.post("/orders/{order_id}/pay")
async def pay(order_id: int, customer: str) -> int:
    """From async code. Returns how many devices it reached."""
    return await hub.notify(customer, "Paid", f"Order {order_id} is paid", "success", metadata={"order": order_id})


@app.post("/orders/{order_id}/ship")
def ship(order_id: int, customer: str, tasks: BackgroundTasks) -> dict[str, str]:
    """From sync code, in a thread of FastAPI's: `hub.sync` has the same calls."""
    tasks.add_task(hub.sync.notify, customer, "Shipped", f"Order {order_id} is on its way")
    return {"status": "shipped"}


@app.post("/close")
def close() -> int:
    return hub.sync.broadcast("Closing", "The shop closes in ten minutes", "warning")
