"""The same calls to Headrace and to vLLM's own server: the answers are the same, or a reason is written down.

calls.py is the list. Both serve one small model that speaks and, under another name, the same model that embeds.
"""

import pytest

from tests.support.vllm_server import MODEL as MODEL

EMBEDDER = "smollm2-135m-embedder"
"""The same weights, run as a pooling model."""
ADAPTER = "smollm2-135m-adapter"
"""A LoRA adapter of MODEL."""
MARKS = [pytest.mark.vllm, pytest.mark.timeout(600)]
"""For `pytestmark` of each module: the first test waits until all engines run."""
