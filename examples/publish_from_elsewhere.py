"""Publishing without running a server: a script, or a task of Celery's. It needs the engine that the nodes share.

Run it:  hubbub serve --workers 2
         HUBBUB_VALKEY_URL=unix://$PWD/.hubbub/valkey/valkey.sock python examples/publish_from_elsewhere.py alice
         (with an engine of your own, both have the same HUBBUB_VALKEY_URL)
Connect: ws://127.0.0.1:8000/ws?token=…  (`hubbub token alice --subscribe 'reports:*'`), send
         {"type": "subscribe", "channel": "reports:7"}, run it, and get
         {"type": "publication", "channel": "reports:7", …}  and  {"type": "notification", …}
"""

import sys

from hubbub import Publisher

hub = Publisher()  # one for the whole program: its threads, and what is forked from it


# with Celery:  @celery_app.task(autoretry_for=(BrokerUnavailable,), retry_backoff=True, acks_late=True)
def build_report(report_id: int, user_id: str) -> str:
    """A task. Run again after a crash, it still says everything once: that is what the idempotency keys are for."""
    once = f"report-{report_id}"
    for percent in (50, 100):
        hub.publish(f"reports:{report_id}", {"percent": percent}, idempotency_key=f"{once}-{percent}")
    hub.notify(user_id, "Report", "It is ready", "success", {"report": report_id}, idempotency_key=once)
    return "told" if hub.online(user_id) else "told when they come back"


if __name__ == "__main__":
    with hub:
        print(build_report(7, sys.argv[1] if len(sys.argv) > 1 else "alice"))
