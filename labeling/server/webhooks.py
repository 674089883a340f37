"""Argilla's webhook events through our outbox instead of its job queue, which a crash would empty.

What a crash can still lose is the event of a judgement stored in the very moment before it; whoever must not miss one
asks for the counts from time to time as well.
"""
# pyright: reportMissingImports=false

import json
from datetime import datetime
from pathlib import Path
from uuid import UUID

import httpx
from argilla_server.contexts import webhooks
from argilla_server.database import sync_engine
from argilla_server.models import Webhook
from argilla_server.webhooks.v1 import commons, event
from fastapi.encoders import jsonable_encoder
from sqlalchemy.orm import Session
from standardwebhooks.webhooks import Webhook as Signer

from labeling.server.outbox import Delivery, Outbox, WebhookGone

FILE = "webhooks.db"


def deliver_from(home: Path) -> Outbox:
    """Keep events in a file of the home from now on, and send what is there."""
    outbox = Outbox(home / FILE, _send)

    async def keep(db, event: str, timestamp: datetime, data: dict) -> list:
        wanted = [str(hook.id) for hook in await webhooks.list_enabled_webhooks(db) if event in hook.events]
        if wanted:
            outbox.put(wanted, json.dumps(commons._build_payload(event, timestamp, jsonable_encoder(data))))
        return []

    event.enqueue_notify_events = keep
    outbox.start()
    return outbox


def _send(delivery: Delivery) -> None:
    """One attempt, signed anew under the message's own id (Standard Webhooks)."""
    with Session(sync_engine) as db:
        webhook = db.get(Webhook, UUID(delivery.webhook))
        if webhook is None or not webhook.enabled:
            raise WebhookGone
        url, secret = webhook.url, webhook.secret
    moment = datetime.utcnow()
    signature = Signer(secret).sign(delivery.message, moment, delivery.body)
    headers = commons._build_headers(delivery.message, moment, signature)
    timeout = commons.NOTIFY_EVENT_DEFAULT_TIMEOUT
    httpx.post(url, headers=headers, content=delivery.body, timeout=timeout).raise_for_status()
