"""Registers Secret blocks from environment variables: ``python deployments/blocks.py NAME …``.

Each variable NAME becomes the block that a pipeline names as ``${prefect.blocks.secret.name}``: lower case, dashes for
underscores. Values come from the environment only, because every user of a machine can see the arguments of a command.
"""

from __future__ import annotations

import os
import sys

from prefect.blocks.system import Secret
from pydantic import SecretStr


def block_name(variable: str) -> str:
    """The block of ``OPENAI_API_KEY`` is ``openai-api-key``: Prefect allows lower case, digits and dashes."""
    return variable.lower().replace("_", "-")


def register(variables: list[str]) -> list[str]:
    """Create or update a block for each variable; returns their names. Exits without a change if one is not set."""
    missing = [variable for variable in variables if not os.environ.get(variable)]
    if missing:
        sys.exit(f"not set in the environment: {', '.join(missing)}; export them, and run this again")
    for variable in variables:
        Secret(value=SecretStr(os.environ[variable])).save(block_name(variable), overwrite=True)  # pyright: ignore[reportUnusedCoroutine] # not a coroutine, because no event loop runs here
    return [block_name(variable) for variable in variables]


def main() -> None:
    """Run the command line."""
    if len(sys.argv) < 2:
        sys.exit("name the environment variables to keep as Secret blocks: python deployments/blocks.py OPENAI_API_KEY")
    for variable, block in zip(sys.argv[1:], register(sys.argv[1:]), strict=True):
        sys.stdout.write(f"{variable}: write ${{prefect.blocks.secret.{block}}} in the pipeline\n")


if __name__ == "__main__":
    main()
