#!/usr/bin/env python3
"""Loads a LoRA file of SquareQ into diffusers' FLUX.1-dev transformer and compares every weight change.

    python3 -m venv venv && venv/bin/pip install torch diffusers peft safetensors numpy
    venv/bin/python scripts/check-lora-diffusers.py [FILE.safetensors]

Without FILE, a test program of the release build (scripts/test) writes one with random adapters of rank 4 on all 304
linears of the blocks. FILE must be of FLUX.1-dev's size. Needs about 3 GB of memory and no model: the transformer's own weights are never made.
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file

TOP = Path(__file__).resolve().parent.parent
HIDDEN, DOUBLE, SINGLE, MLP = 3072, 19, 38, 4 * 3072
# Parts of a double block's linears in diffusers, in the order of their rows.
DOUBLE_PARTS = {
    "img_attn_qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "img_attn_proj": ["attn.to_out.0"],
    "img_mlp_0": ["ff.net.0.proj"],
    "img_mlp_2": ["ff.net.2"],
    "img_mod_lin": ["norm1.linear"],
    "txt_attn_qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "txt_attn_proj": ["attn.to_add_out"],
    "txt_mlp_0": ["ff_context.net.0.proj"],
    "txt_mlp_2": ["ff_context.net.2"],
    "txt_mod_lin": ["norm1_context.linear"],
}
SINGLE_PARTS = {
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
    "modulation_lin": ["norm.linear"],
}


def diffusers_names():
    """kohya module: the names of its parts in diffusers."""
    names = {}
    for kohya, ours, blocks, parts in (
        ("double", "transformer_blocks", DOUBLE, DOUBLE_PARTS),
        ("single", "single_transformer_blocks", SINGLE, SINGLE_PARTS),
    ):
        for block in range(blocks):
            for module, targets in parts.items():
                names[f"lora_unet_{kohya}_blocks_{block}_{module}"] = [f"{ours}.{block}.{t}" for t in targets]
    return names


def write_full_size(path):
    program = TOP / "build/release/tests/test_io"
    if not program.exists():
        sys.exit(f"{program} is missing: run scripts/test first")
    subprocess.run([program, "[.full-size]"], check=True, env={**os.environ, "SQUAREQ_WRITE_LORA": path},
                   stdout=subprocess.DEVNULL)


def load_into_transformer(path):
    """The file in diffusers, by its own conversion and loader: {name of a linear: (A, B, scaling)}.

    Layers and scalings come from the loaded transformer. It has no memory, so the numbers are those handed to it.
    """
    state = FluxPipeline.lora_state_dict(str(path))
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)  # its defaults are those of FLUX.1-dev
    transformer.load_lora_adapter(dict(state), prefix="transformer", adapter_name="squareq", low_cpu_mem_usage=True)
    layers = {}
    for name, module in transformer.named_modules():
        if hasattr(module, "lora_A") and "squareq" in module.lora_A:
            a, b = (state.pop(f"transformer.{name}.lora_{way}.weight").float() for way in "AB")
            assert a.shape == module.lora_A["squareq"].weight.shape and a.shape[1] == module.in_features, name
            assert b.shape == module.lora_B["squareq"].weight.shape and b.shape[0] == module.out_features, name
            layers[name] = (a, b, module.scaling["squareq"])
    if state:
        sys.exit(f"FAILED: loaded into no layer: {sorted(state)}")
    return layers


def product_norm(left, right):
    """The Frobenius norm of left @ right, which is never formed: left = QR, and Q keeps lengths."""
    return (torch.linalg.qr(left.double(), mode="r").R @ right.double()).norm().item()


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(folder, "lora.safetensors")
        if len(sys.argv) < 2:
            write_full_size(path)
        file = load_file(path)
        layers = load_into_transformer(path)
    modules = sorted({key.split(".", 1)[0] for key in file})
    names = diffusers_names()
    unknown = [m for m in modules if m not in names]
    worst, worst_name, compared = 0.0, "", 0
    for module in modules:
        if module in unknown:
            continue
        down, up = (file[f"{module}.lora_{way}.weight"].float() for way in ("down", "up"))
        up *= float(file[f"{module}.alpha"]) / down.shape[0]
        row = 0
        for name in names[module]:
            if name not in layers:
                sys.exit(f"diffusers has loaded nothing for {name}, which {module} changes")
            a, b, scaling = layers.pop(name)
            part = up[row : row + b.shape[0]]
            difference = product_norm(torch.cat([b * scaling, -part], 1), torch.cat([a, down]))
            error = difference / max(product_norm(part, down), 1e-30)
            if not error <= worst:
                worst, worst_name = error, name
            row += b.shape[0]
            compared += 1
        assert row == up.shape[0], module
    print(f"{len(modules)} modules in the file, {compared} linears changed in diffusers, "
          f"worst relative difference of a weight change {worst:.1e} ({worst_name})")
    limit = 1e-5 if file[modules[0] + ".lora_up.weight"].dtype == torch.float32 else 1e-2
    if unknown or layers or not worst <= limit:
        sys.exit(f"FAILED: unknown modules {unknown}, without counterpart in the file {sorted(layers)}, limit {limit}")
    print("ok")


main()
