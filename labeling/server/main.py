"""`python -m labeling.server.main --home DIR --port N`: one Argilla process, in its private environment."""
# pyright: reportMissingImports=false

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from labeling.server import credentials

HOST = "127.0.0.1"


def main() -> int:
    """Bring the database up to date, make sure of the owner, and serve until told to stop."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="folder of the database and the secrets")
    parser.add_argument("--port", type=int, default=6900)
    arguments = parser.parse_args()
    home = arguments.home.resolve()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    _configure(home, arguments.port)

    from labeling.server import connections, fulltext, jobs, statuses

    with jobs.redis_in_process(), connections.without_limit():
        import argilla_server

    from labeling.server import (
        answers,
        engine,  # noqa: F401  importing it registers it
        privacy,
        tuning,
        webhooks,
    )

    database = connections.prepare()
    _migrate()
    fulltext.prepare(database, _say_left)
    statuses.mend(database)
    asyncio.run(_ensure_owner(*credentials.owner(home)))
    answers.install()
    privacy.guard_records(argilla_server.app)
    tuning.skip_unwanted_events()
    jobs.start()
    webhooks.deliver_from(home)

    import uvicorn

    print(f"Argilla on http://{HOST}:{arguments.port} after {time.monotonic() - started:.1f} s", flush=True)
    uvicorn.run(argilla_server.app, host=HOST, port=arguments.port, access_log=False, timeout_graceful_shutdown=3)
    return 0


def _configure(home: Path, port: int) -> None:
    """Settings reach argilla_server through its environment variables, read when it is imported."""
    origins = [f"http://{host}:{port}" for host in (HOST, "localhost")]
    os.environ.update(
        ARGILLA_HOME_PATH=str(home),
        ARGILLA_AUTH_SECRET_KEY=credentials.secret(home, credentials.AUTH_SECRET),  # random per process otherwise
        ARGILLA_CORS_ORIGINS=json.dumps(origins),
        ARGILLA_DATABASE_SQLITE_TIMEOUT="30",
        ARGILLA_SEARCH_ENGINE="embedded",
        HF_HUB_DISABLE_TELEMETRY="1",
    )
    scratch = home / "scratch"  # the server copies its web UI into a new temporary folder at every start
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    tempfile.tempdir = str(scratch)


def _migrate() -> None:
    """Bring the tables up to date, without alembic's fileConfig, which would switch our loggers off."""
    from alembic import command
    from alembic.config import Config
    from argilla_server.database import ALEMBIC_CONFIG_FILE

    config = Config()
    config.set_main_option("script_location", str(Path(ALEMBIC_CONFIG_FILE).with_name("alembic")))
    command.upgrade(config, "head")


def _say_left(records: int) -> None:
    """A first start over a large database takes a while: say so in the log."""
    if records % 10_000 < 500 < records:
        print(f"Indexing texts, {records} records to go", flush=True)


async def _ensure_owner(username: str, password: str, api_key: str) -> None:
    """Create the owner, or give the one that exists the password and key now in the files."""
    from argilla_server.contexts import accounts
    from argilla_server.database import AsyncSessionLocal, async_engine
    from argilla_server.models import User, UserRole

    async with AsyncSessionLocal() as db:
        user = await accounts.get_user_by_username(db, username)
        if user is None:
            await User.create(
                db,
                first_name=username,
                username=username,
                role=UserRole.owner,
                password_hash=accounts.hash_password(password),
                api_key=api_key,
            )
        elif user.api_key != api_key or not accounts.verify_password(password, user.password_hash):
            await user.update(db, api_key=api_key, password_hash=accounts.hash_password(password))
    await async_engine.dispose()  # its connections belong to this event loop, which ends here


if __name__ == "__main__":
    sys.exit(main())
