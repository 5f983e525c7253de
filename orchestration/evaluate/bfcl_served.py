"""BFCL's command line with one model more, `served`: the one behind OPENAI_BASE_URL.

Runs in bfcl-eval's environment, without Trajlake: python bfcl_served.py NAME calls|prompt COMMAND …
BFCL knows models by a list in its code, with the name that each has at its vendor's.
"""

from __future__ import annotations

import sys
from typing import Any


def main() -> None:
    """Register the model and hand over to BFCL."""
    from bfcl_eval.__main__ import cli
    from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING, ModelConfig
    from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler

    class Served(OpenAICompletionsHandler):  # type: ignore[misc]
        def generate_with_backoff(self, **fields: Any) -> Any:
            fields.pop("store", None)  # OpenAI's own; other servers refuse it
            return super().generate_with_backoff(**fields)

    name, mode = sys.argv[1:3]
    del sys.argv[1:3]
    MODEL_CONFIG_MAPPING["served"] = ModelConfig(
        model_name=name,
        display_name=name,
        url="",
        org="",
        license="",
        model_handler=Served,
        is_fc_model=mode == "calls",
        underscore_to_dot=mode == "calls",
    )
    cli()


if __name__ == "__main__":
    main()
