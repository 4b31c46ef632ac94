"""How a model server is reached; the same keys wherever a YAML names one."""

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from axolotl_distill.config.block import Block


class ServerArgs(Block):
    """A server that speaks the OpenAI API: vLLM, SGLang, or a vendor's own."""

    base_url: str = Field(description="With the version, for example http://localhost:8000/v1")
    engine: Literal["vllm", "sglang", "openai"] = Field(
        "openai", description="What it is, for what goes beyond the OpenAI API."
    )
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="Environment variable with the key; local servers need none."
    )
    concurrency: int = Field(32, ge=1, description="Requests under way at once.")
    retries: int = Field(
        8, ge=0, description="Further tries after 429, 5xx, time-outs and broken answers."
    )
    timeout: float = Field(600.0, gt=0.0, description="Seconds until a request counts as hung.")

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("base_url must begin with http:// or https://")
        parts = urlsplit(value)
        if not parts.hostname or not parts.netloc.isprintable() or set(value) & set(" \t\r\n?#"):
            raise ValueError(
                "base_url must be an address such as http://localhost:8000/v1, without spaces, `?` "
                "or `#`"
            )
        if parts.port == 0:  # the property raises ValueError for what is no port
            raise ValueError("base_url names port 0, which no server has")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
            raise ValueError(
                "must be the name of an environment variable, in capitals such as OPENAI_API_KEY, "
                "and not the key itself; keys do not belong into files that are shared"
            )
        return value
