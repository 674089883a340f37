"""Skip work whose result nobody asked for."""
# pyright: reportMissingImports=false

from argilla_server.bulk import records_bulk
from argilla_server.contexts import datasets, distribution, webhooks


def skip_unwanted_events() -> None:
    """Build an event (6 queries each) only where an enabled webhook asks for it."""
    records_bulk.notify_record_event_v1 = _where_wanted(records_bulk.notify_record_event_v1)
    distribution.notify_record_event_v1 = _where_wanted(distribution.notify_record_event_v1)
    datasets.notify_response_event_v1 = _where_wanted(datasets.notify_response_event_v1)


def _where_wanted(notify):
    async def notify_where_wanted(db, event, subject):
        wanted = {str(name) for hook in await webhooks.list_enabled_webhooks(db) for name in hook.events}
        return await notify(db, event, subject) if str(event) in wanted else []

    return notify_where_wanted
