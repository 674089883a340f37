"""Answers one after the other; malformed and doubled ones are refused in words, where the stock server stumbles."""
# pyright: reportMissingImports=false

import asyncio

from argilla_server.contexts import datasets
from argilla_server.errors.future import NotUniqueError, UnprocessableEntityError
from argilla_server.validators import responses, suggestions
from argilla_server.validators.response_values import ResponseValueValidator
from sqlalchemy.exc import IntegrityError

_turn = asyncio.Lock()
"""Held while an answer is written. SQLite lets one write at a time, and makes the others ask again and again: some of
them for seconds. In a queue everybody waits equally long."""


def install() -> None:
    """Answers take turns. One of another question's form is refused with 422, one given twice at once with 409."""
    responses.ResponseValueValidator = suggestions.ResponseValueValidator = _Validator
    datasets.create_response = _in_turn(_once(datasets.create_response))
    datasets.update_response = _in_turn(datasets.update_response)
    datasets.upsert_response = _in_turn(datasets.upsert_response)
    datasets.delete_response = _in_turn(datasets.delete_response)


class _Validator(ResponseValueValidator):
    @classmethod
    def validate(cls, response_value, question_settings, record, response_status=None) -> None:
        try:
            super().validate(response_value, question_settings, record, response_status)
        except (AttributeError, TypeError) as error:
            kind = getattr(question_settings.type, "value", question_settings.type)
            raise UnprocessableEntityError(f"the value given does not have the form of a {kind} question's") from error


def _in_turn(write):
    async def write_in_turn(*args, **options):
        async with _turn:
            return await write(*args, **options)

    return write_in_turn


def _once(create):
    async def create_once(db, search_engine, record, user, response_create):
        record_id, user_id = record.id, user.id
        try:
            return await create(db, search_engine, record, user, response_create)
        except IntegrityError as error:  # both looked before either had written
            await db.rollback()
            raise NotUniqueError(
                f"Response already exists for record with id `{record_id}` and by user with id `{user_id}`"
            ) from error

    return create_once
