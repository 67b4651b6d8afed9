"""A LoRA adapter in the format of the library peft, made of drawn numbers: all that is asked of it is to change the answers."""

import json
from pathlib import Path

import numpy
from safetensors.numpy import save_file

RANK = 8


def write_adapter(folder: Path, checkpoint: Path) -> Path:
    """`checkpoint`: of the model that it is for."""
    model = json.loads((checkpoint / "config.json").read_text())
    width, heads = model["hidden_size"], model["num_attention_heads"]
    outputs = {"q_proj": width, "v_proj": width // heads * model["num_key_value_heads"]}
    draw = numpy.random.default_rng(7)
    weights = {}
    for layer in range(model["num_hidden_layers"]):
        for name, out in outputs.items():
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for part, shape in (("lora_A", (RANK, width)), ("lora_B", (out, RANK))):
                weights[f"{at}.{part}.weight"] = draw.normal(0, 0.1, shape).astype(numpy.float32)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(outputs), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
