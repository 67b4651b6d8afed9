"""A GGUF file made into a checkpoint folder in Hugging Face's format.

vLLM cannot run GGUF on a CPU, and the small model that a package registry holds comes in no other form. Done with
numpy alone, tensor by tensor: seconds, and no more memory than the largest tensor.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Progress = Callable[[float], None]
"""Called with the share that is done, 0 to 1."""

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3


class UnsupportedModel(Exception):
    """Not a model that this converter knows to convert exactly."""


def convert(weights: Path, folder: Path, progress: Progress) -> None:
    """Write the files of a checkpoint into `folder`. Raises: UnsupportedModel, OSError."""
    from gguf import GGUFReader  # a large import, needed once in the life of a machine

    reader = GGUFReader(str(weights))

    def field(name: str) -> Any:
        found = reader.fields.get(name)
        return None if found is None else found.contents()

    if field("general.architecture") != "llama" or field("tokenizer.ggml.pre") != "smollm":
        raise UnsupportedModel(f"it is {field('general.architecture')}/{field('tokenizer.ggml.pre')}, not llama/smollm")
    _write_tokenizer(field, folder)
    names = _write_weights(reader.tensors, field, folder / "model.safetensors", progress)
    _write_config(field, folder, tied="lm_head.weight" not in names)


def _write_weights(tensors: list[Any], field: Callable[[str], Any], path: Path, progress: Progress) -> set[str]:
    """A safetensors file of bfloat16: length of the header, header, data in the header's order."""
    named = {_name(tensor.name): tensor for tensor in tensors if not tensor.name.startswith("rope_freqs")}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in named.items():
        shape = [int(size) for size in reversed(tensor.shape)]
        start, end = end, end + 2 * int(tensor.n_elements)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in named.values():
            file.write(_bfloat16(tensor, field).tobytes())
            progress((file.tell() - len(text) - 8) / end)
    return set(named)


def _name(gguf_name: str) -> str:
    parts = gguf_name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_INNER[parts[2]]}.weight"
    return f"{_OUTER[parts[0]]}.weight"


def _bfloat16(tensor: Any, field: Callable[[str], Any]) -> Any:
    """Dequantised and rounded to nearest even, as the upper half of a float32."""
    import numpy as np
    from gguf.quants import dequantize

    values = dequantize(tensor.data, tensor.tensor_type).reshape([int(size) for size in reversed(tensor.shape)])
    if ".attn_q." in tensor.name:
        values = _interleaved_to_halves(values, field("llama.attention.head_count"))
    elif ".attn_k." in tensor.name:
        values = _interleaved_to_halves(values, field("llama.attention.head_count_kv"))
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _interleaved_to_halves(weights: Any, heads: int) -> Any:
    """GGUF keeps the two parts of each rotary pair side by side, transformers keeps them in two halves of a head."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_tokenizer(field: Callable[[str], Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(field("tokenizer.chat_template"))
    special = _special_ids(field)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": field("llama.context_length"),
        "unk_token": tokens[field("tokenizer.ggml.unknown_token_id")],
        **{f"{name}_token": tokens[number] for name, number in special.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _special_ids(field: Callable[[str], Any]) -> dict[str, int]:
    bos, eos, pad = (field(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding"))
    return {"bos": bos, "eos": eos, "pad": eos if pad is None else pad}


def _write_config(field: Callable[[str], Any], folder: Path, *, tied: bool) -> None:
    special = {f"{name}_token_id": number for name, number in _special_ids(field).items()}
    hidden, heads = field("llama.embedding_length"), field("llama.attention.head_count")
    theta = field("llama.rope.freq_base")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "vocab_size": len(field("tokenizer.ggml.tokens")),
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": field("llama.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rope_theta": theta,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        **special,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps(special))
