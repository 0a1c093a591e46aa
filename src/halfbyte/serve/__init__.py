"""The server: OpenAI's HTTP interface to one base and the adapters trained on it."""

from halfbyte.serve.settings import Keys, Limits, ServeSettings

__all__ = ["Keys", "Limits", "ServeSettings"]
