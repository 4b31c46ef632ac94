"""`teacher:` of a recipe: the model that writes."""

from typing import Any, Literal

from pydantic import Field, model_validator

from axolotl_distill.config.block import Block, expanded
from axolotl_distill.config.server import ServerArgs


class RecipeTeacher(Block):
    """A model behind a server, or a Hugging Face model in this process."""

    type: Literal["server", "model"] = "server"
    name: str = Field(description="server: the model as served. model: local folder or hub name.")
    server: ServerArgs | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="model only."
    )
    device: str = Field("auto", description="model only: auto, cpu, cuda, cuda:1, mps, …")
    trust_remote_code: bool = Field(False, description="model only.")
    terms: str | None = Field(
        None,
        description="Your own words on why you may train on this model's output; needed where its "
        "terms forbid it, or allow research only. They are kept in the dataset card.",
    )

    @model_validator(mode="before")
    @classmethod
    def _type_follows_server(cls, values: Any) -> Any:
        if isinstance(values, dict) and "type" not in values:
            return {**values, "type": "server" if "server" in values else "model"}
        return values

    @model_validator(mode="after")
    def _goes_together(self) -> "RecipeTeacher":
        if self.type == "server" and self.server is None:
            raise ValueError(
                "`type: server` needs `server: {base_url: http://…/v1}`; for a model in this "
                "process set `type: model`."
            )
        if self.type == "model" and self.server is not None:
            raise ValueError("`type: model` runs in this process; remove `server`.")
        if self.type == "model":
            self.name = expanded(self.name)
        return self
