"""What vLLM is told: a pool's options as flags of its own server, and the environment that it reads at its import."""

import difflib
import os
from collections.abc import Collection, Mapping

from shared.engine_options import Flag, Scalar
from shared.errors import ConfigError

CPU_SEQUENCES = 24
"""What two cores still gain from: 0.93 of the tokens per second of 64. With more, each step takes longer, and so each token."""
CPU_STEP_TOKENS = 256
"""Of one step, prompts included: a first token waits for the step in progress. Less, and prompts take more steps of their own."""
CPU_KV_CACHE_BYTES = 1 << 30
"""46,000 tokens of SmolLM2-135M. Without a figure vLLM claims nearly all memory, and fails beside other programs."""

OURS = {
    "model": "source of the pool",
    "served-model-name": "model of the pool",
    "host": "HEADRACE_INFERENCE_HOST",
    "port": "HEADRACE_INFERENCE_PORT",
    "api-key": "nothing: only Headrace reaches the engine",
    "api-server-count": "replicas of the inference service",
    "headless": "replicas of the inference service",
    "config": "options of the pool",
}
"""Flags that Headrace sets itself or that mean nothing in-process, and what to use instead."""


def defaults(*, cpu: bool, slots: int) -> dict[str, Scalar]:
    """Options in force unless the pool sets them."""
    options: dict[str, Scalar] = {"scheduling-policy": "priority"}
    if slots:
        options["max-num-seqs"] = slots
    if cpu:
        # Compiling takes minutes on a CPU and needs a compiler; the gain for small models is nothing.
        options |= {"enforce-eager": True, "kv-cache-memory-bytes": CPU_KV_CACHE_BYTES}
        options = {"max-num-seqs": CPU_SEQUENCES, "max-num-batched-tokens": CPU_STEP_TOKENS} | options
    return options


def environment(*, cpu: bool) -> dict[str, str]:
    """Variables for vLLM where they are not set. To be in force before vllm is imported."""
    variables = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if cpu:
        # Even eager, a request with logprobs would compile a kernel: for seconds, and without a compiler the engine dies.
        variables["TORCHDYNAMO_DISABLE"] = "1"
        # `auto` leaves one core to the embedding process: a quarter of the tokens per second on two cores.
        cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
        variables["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(cores)
        # The OpenMP runtime reads these when it is loaded, which for forked workers is here: without them their threads
        # wander, at a quarter of the tokens per second.
        variables |= {"GOMP_CPU_AFFINITY": " ".join(cores), "OMP_NUM_THREADS": str(len(cores))}
    return variables


def to_flags(options: Mapping[str, Flag], known: Collection[str]) -> list[str]:
    """`known`: the flags of the installed vLLM, without dashes. Raises: ConfigError naming every fault."""
    named = {name.replace("_", "-"): value for name, value in options.items()}
    faults = [fault for name in named if (fault := _fault(name, known))]
    if faults:
        raise ConfigError("\n".join(["the pool's vllm.options cannot be used:", *(f"  {fault}" for fault in faults)]))
    return [flag for name, value in named.items() for flag in _flags(name, value)]


def _fault(name: str, known: Collection[str]) -> str:
    if name in OURS:
        return f"{name}: set by Headrace; use {OURS[name]}"
    if name.partition(".")[0] in known:  # compilation-config.mode sets one member of a JSON option
        return ""
    close = difflib.get_close_matches(name, known, n=3)
    return f"{name}: vLLM has no such option" + (f"; did you mean {' or '.join(close)}?" if close else "")


def _flags(name: str, value: Flag) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]
