#!/usr/bin/env python3
"""Loads LoRA files of both namings into diffusers' FLUX.1-dev transformer and compares every weight change.

    python3 -m venv venv && venv/bin/pip install torch diffusers peft safetensors numpy
    venv/bin/python scripts/check-lora-diffusers.py [FILE.safetensors...]

Without FILE, squareq-lora of the release build (scripts/test) makes random ones of rank 4 on all linears of the blocks in
kohya and in PEFT naming, and converts each to the other naming; their names and shapes are compared with complete lists
made here, and the changes of a converted file with those of its source. FILEs must be of FLUX.1-dev's size. Needs about
3 GB of memory and no model: the transformer's own weights are never made.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file

TOP = Path(__file__).resolve().parent.parent
HIDDEN, DOUBLE, SINGLE, MLP = 3072, 19, 38, 4 * 3072
# Linears of a double block: inputs, and their parts in diffusers with the rows of each, in order.
DOUBLE_PARTS = {
    "img_attn_qkv": (HIDDEN, {"attn.to_q": HIDDEN, "attn.to_k": HIDDEN, "attn.to_v": HIDDEN}),
    "img_attn_proj": (HIDDEN, {"attn.to_out.0": HIDDEN}),
    "img_mlp_0": (HIDDEN, {"ff.net.0.proj": MLP}),
    "img_mlp_2": (MLP, {"ff.net.2": HIDDEN}),
    "img_mod_lin": (HIDDEN, {"norm1.linear": 6 * HIDDEN}),
    "txt_attn_qkv": (HIDDEN, {"attn.add_q_proj": HIDDEN, "attn.add_k_proj": HIDDEN, "attn.add_v_proj": HIDDEN}),
    "txt_attn_proj": (HIDDEN, {"attn.to_add_out": HIDDEN}),
    "txt_mlp_0": (HIDDEN, {"ff_context.net.0.proj": MLP}),
    "txt_mlp_2": (MLP, {"ff_context.net.2": HIDDEN}),
    "txt_mod_lin": (HIDDEN, {"norm1_context.linear": 6 * HIDDEN}),
}
SINGLE_PARTS = {
    "linear1": (HIDDEN, {"attn.to_q": HIDDEN, "attn.to_k": HIDDEN, "attn.to_v": HIDDEN, "proj_mlp": MLP}),
    "linear2": (HIDDEN + MLP, {"proj_out": HIDDEN}),
    "modulation_lin": (HIDDEN, {"norm.linear": 3 * HIDDEN}),
}


def block_linears():
    """kohya module: (inputs, {diffusers module: rows})."""
    linears = {}
    for kohya, ours, blocks, parts in (
        ("double", "transformer_blocks", DOUBLE, DOUBLE_PARTS),
        ("single", "single_transformer_blocks", SINGLE, SINGLE_PARTS),
    ):
        for block in range(blocks):
            for module, (inputs, targets) in parts.items():
                rows = {f"{ours}.{block}.{target}": out for target, out in targets.items()}
                linears[f"lora_unet_{kohya}_blocks_{block}_{module}"] = (inputs, rows)
    return linears


LINEARS = block_linears()


def complete_list(naming, rank, fused_rank):
    """Every tensor of a file with adapters on all linears of the blocks: {name: shape}."""
    shapes = {}
    for module, (inputs, parts) in LINEARS.items():
        if naming == "kohya":
            r = fused_rank(len(parts))
            shapes[f"{module}.lora_down.weight"] = (r, inputs)
            shapes[f"{module}.lora_up.weight"] = (sum(parts.values()), r)
            shapes[f"{module}.alpha"] = ()
            continue
        for part, rows in parts.items():
            shapes[f"transformer.{part}.lora_A.weight"] = (rank, inputs)
            shapes[f"transformer.{part}.lora_B.weight"] = (rows, rank)
    return shapes


def changes_in_file(path):
    """{diffusers module: (A, B, scale)}, as the definitions of the two namings have it."""
    file = load_file(path)
    changes = {}
    for module, (_, parts) in LINEARS.items():
        if f"{module}.alpha" in file:
            down, up, alpha = (file.pop(f"{module}.{kind}").float() for kind in
                               ("lora_down.weight", "lora_up.weight", "alpha"))
            row = 0
            for part, rows in parts.items():
                if up[row : row + rows].any():
                    changes[part] = (down, up[row : row + rows], float(alpha) / down.shape[0])
                row += rows
        for part in parts:
            if f"transformer.{part}.lora_A.weight" in file:
                a, b = (file.pop(f"transformer.{part}.lora_{way}.weight").float() for way in "AB")
                changes[part] = (a, b, 1.0)
    if file:
        sys.exit(f"FAILED: {path}: tensors on no linear of a block: {sorted(file)[:5]}")
    return changes


def changes_in_diffusers(path):
    """The file by diffusers' own conversion and loader.

    Layers and scalings come from the loaded transformer. It has no memory, so the numbers are those handed to it.
    """
    state = FluxPipeline.lora_state_dict(str(path))
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)  # its defaults are those of FLUX.1-dev
    transformer.load_lora_adapter(dict(state), prefix="transformer", adapter_name="squareq", low_cpu_mem_usage=True)
    changes = {}
    for name, module in transformer.named_modules():
        if hasattr(module, "lora_A") and "squareq" in module.lora_A:
            a, b = (state.pop(f"transformer.{name}.lora_{way}.weight").float() for way in "AB")
            assert a.shape == module.lora_A["squareq"].weight.shape and a.shape[1] == module.in_features, name
            assert b.shape == module.lora_B["squareq"].weight.shape and b.shape[0] == module.out_features, name
            changes[name] = (a, b, module.scaling["squareq"])
    if state:
        sys.exit(f"FAILED: {path}: diffusers loaded these into no layer: {sorted(state)[:5]}")
    return changes


def product_norm(left, right):
    """The Frobenius norm of left @ right, which is never formed: left = QR, and Q keeps lengths."""
    return (torch.linalg.qr(left.double(), mode="r").R @ right.double()).norm().item()


def compare(what, found, expected, limit):
    """Fails unless both change the same linears by the same, up to `limit` relative to the norm of each change."""
    # A linear that is there but changes by nothing is none.
    found = {name: change for name, change in found.items() if change[1].any()}
    if found.keys() != expected.keys():
        sys.exit(f"FAILED: {what}: other linears: {sorted(found.keys() ^ expected.keys())[:5]}")
    worst, where = 0.0, ""
    for name, (a, b, scale) in expected.items():
        a2, b2, scale2 = found[name]
        error = product_norm(torch.cat([b2 * scale2, -b * scale], 1), torch.cat([a2, a])) / product_norm(b * scale, a)
        if not error <= worst:
            worst, where = error, name
    print(f"{what}: {len(expected)} linears, worst relative difference of a weight change {worst:.1e} ({where})")
    if not worst <= limit:
        sys.exit(f"FAILED: limit {limit}")


def check_list(path, expected):
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(path).items()}
    if shapes != expected:
        wrong = {name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name)}
        sys.exit(f"FAILED: {path}: {len(wrong)} tensors are missing, unknown or of another shape: {sorted(wrong)[:5]}")
    print(f"{Path(path).name}: {len(shapes)} tensors, as listed")


def check_made_files(folder):
    program = TOP / "build/release/bin/squareq-lora"
    if not program.exists():
        sys.exit(f"{program} is missing: run scripts/test first")
    run = lambda *command: subprocess.run([program, *command], check=True)
    other = {"kohya": "peft", "peft": "kohya"}
    for naming in other:
        made, converted, back = (f"{folder}/{name}.safetensors" for name in (naming, f"{naming}-converted", "back"))
        run("synth", "--shape", "flux-dev", "--rank", "4", "--alpha", "2", "--targets", "all-linear",
            "--naming", naming, "--dtype", "f32", "-o", made)
        run("convert", made, "--naming", other[naming], "-o", converted)
        run("convert", converted, "--naming", naming, "-o", back)
        fused_rank = {"kohya": lambda parts: 4, "peft": lambda parts: 4 * parts}[naming]
        check_list(made, complete_list(naming, 4, fused_rank))
        check_list(converted, complete_list(other[naming], 4, fused_rank))
        check_list(back, complete_list(naming, 4, fused_rank))
        expected = changes_in_file(made)
        for path in (made, converted):
            compare(f"{Path(path).name} in diffusers", changes_in_diffusers(path), expected, 1e-6)
        compare("there and back", changes_in_file(back), expected, 1e-12)  # rounding of this comparison


def main():
    if len(sys.argv) > 1:
        for path in sys.argv[1:]:
            exact = all(a.dtype == torch.float32 for a in load_file(path).values())
            compare(f"{path} in diffusers", changes_in_diffusers(path), changes_in_file(path), 1e-6 if exact else 1e-2)
    else:
        with tempfile.TemporaryDirectory() as folder:
            check_made_files(folder)
    print("ok")


main()
