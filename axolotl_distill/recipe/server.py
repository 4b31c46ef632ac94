"""How a model server is reached; the same keys wherever a YAML names one."""

from typing import Literal

from pydantic import Field, field_validator

from axolotl_distill.block import Block


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
        return value.rstrip("/")
