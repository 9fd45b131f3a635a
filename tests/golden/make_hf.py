"""Makes `hf_qwen2` and `hf_llama3_rope` with Transformers and torch; run by hand, not by tests.

    pip install torch transformers && python tests/golden/make_hf.py

Every parameter is random, norms and biases too, so that one which is ignored shows. Made with
torch 2.13.0 and transformers 5.23.0. `hf_llama3_rope` is sharded and has an untied head.
"""

import pathlib

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,  # Short, so that 40 columns show the scaling.
}


def make(name, model, shard_size):
    model = model.float().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn_like(p) + (0.5 if p.ndim == 1 else 0.0))
    folder = pathlib.Path(__file__).parent / name
    model.save_pretrained(folder, max_shard_size=shard_size)
    ids = torch.randint(0, SIZES["vocab_size"], (3, 40))
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    mask[2, :30] = 0
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clip(0)
        logits = model(ids, attention_mask=mask, position_ids=positions).logits
        whole = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    np.savez_compressed(
        folder / "expected.npz",
        left_pad_ids=ids.numpy().astype(np.int32),
        left_pad_mask=mask.numpy().astype(bool),
        left_pad_logits=np.where(mask[..., None].bool(), logits, 0.0).astype(np.float32),
        greedy_tokens=whole[:, 40:].numpy().astype(np.int32),
    )


if __name__ == "__main__":
    make("hf_qwen2", Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)), "5GB")
    llama = LlamaConfig(**SIZES, tie_word_embeddings=False, rope_parameters=ROPE)
    make("hf_llama3_rope", LlamaForCausalLM(llama), "60KB")
