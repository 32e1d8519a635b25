"""The AsyncAPI document of a hub, and its page: what FastAPI's OpenAPI is for HTTP."""

from hubbub.asyncapi.document import describe

__all__ = ["describe"]
