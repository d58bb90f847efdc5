#!/usr/bin/env python3
"""Compares SquareQ with an independent PyTorch version of the four networks, on random models of many shapes.

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors numpy
    venv/bin/python scripts/check-parity.py [--keep FOLDER] [--full-width] [--device cuda] [--bench PROGRAM ARGUMENT...]

Makes pairs like those of tests/data/golden (their README.md says what is in them) with other sizes, with and without
guidance and reference tokens, under the names of BFL, diffusers and single-file checkpoints, and runs `squareq-bench
parity` of the release build on each. CLIP and T5 are those of transformers; the transformer and the autoencoder are
written here from their description, in float64. --full-width makes one transformer instead, of two double and two
single blocks of FLUX.1-dev's width on 512 text and 1024 image tokens, which takes a GPU for PyTorch too.
"""
import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

TOP = Path(__file__).resolve().parent.parent
RANK, ALPHA = 4, 2.0


def normal(generator, *shape, std=1.0, mean=0.0):
    return mean + std * torch.randn(*shape, generator=generator, dtype=torch.float64)


def save(path, tensors, metadata=None, dtype=torch.float32):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().to(dtype).contiguous().cpu() for k, v in tensors.items()}, path, metadata)


# ---- the transformer


class Flux:
    def __init__(self, hidden, heads, axes, depth, single, ctx, vec, inch=64, guidance=True, mlp=4):
        self.hidden, self.heads, self.axes, self.depth, self.single = hidden, heads, axes, depth, single
        self.ctx, self.vec, self.inch, self.guidance, self.mlp = ctx, vec, inch, guidance, mlp * hidden

    def linears(self):
        """name: (out, in, inside a block)"""
        h, m = self.hidden, self.mlp
        sizes = {"img_in": (h, self.inch, False), "txt_in": (h, self.ctx, False)}
        embedders = {"time_in": 256, "vector_in": self.vec} | ({"guidance_in": 256} if self.guidance else {})
        for name, width in embedders.items():
            sizes |= {f"{name}.in_layer": (h, width, False), f"{name}.out_layer": (h, h, False)}
        for i in range(self.depth):
            for s in ("img", "txt"):
                p = f"double_blocks.{i}.{s}_"
                sizes |= {p + "mod.lin": (6 * h, h, True), p + "attn.qkv": (3 * h, h, True),
                          p + "attn.proj": (h, h, True), p + "mlp.0": (m, h, True), p + "mlp.2": (h, m, True)}
        for i in range(self.single):
            p = f"single_blocks.{i}."
            sizes |= {p + "modulation.lin": (3 * h, h, True), p + "linear1": (3 * h + m, h, True),
                      p + "linear2": (h, h + m, True)}
        return sizes | {"final_layer.adaLN_modulation.1": (2 * h, h, False), "final_layer.linear": (64, h, False)}

    def norms(self):
        doubles = [f"double_blocks.{i}.{s}_attn.norm" for i in range(self.depth) for s in ("img", "txt")]
        singles = [f"single_blocks.{i}.norm" for i in range(self.single)]
        return [f"{n}.{w}_norm.scale" for n in doubles + singles for w in ("query", "key")]

    def random_weights(self, generator):
        # As the file holds them: of float32.
        w = {}
        for name, (rows, cols, _) in self.linears().items():
            w[name + ".weight"] = normal(generator, rows, cols, std=cols**-0.5)
            w[name + ".bias"] = normal(generator, rows, std=0.1)
        for name in self.norms():
            w[name] = normal(generator, self.hidden // self.heads, std=0.1, mean=1.0)
        return {k: v.float().double() for k, v in w.items()}

    def forward(self, w, x, lora=None, taps=None):
        """The output of all image tokens. lora: {module: (A, B)}."""

        def linear(name, value):
            out = F.linear(value, w[name + ".weight"], w[name + ".bias"])
            if lora and name in lora:
                a, b = lora[name]
                out = out + ALPHA / a.shape[0] * (value @ a.T @ b.T)
            return out

        def sinusoid(s):
            angle = 1000 * s[:, None] * 10000 ** (-torch.arange(128, dtype=torch.float64) / 128)
            return torch.cat([angle.cos(), angle.sin()], -1)

        def embed(name, value):
            return linear(name + ".out_layer", F.silu(linear(name + ".in_layer", value)))

        def modulated(value, shift, scale):
            return (1 + scale[:, None]) * F.layer_norm(value, value.shape[-1:], eps=1e-6) + shift[:, None]

        def qkv_of(value, norm):
            q, k, v = value.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            rms = lambda t, which: t * (t.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * w[f"{norm}.{which}_norm.scale"]
            return rms(q, "query"), rms(k, "key"), v

        ids = torch.cat([x["txt_ids"], x["img_ids"]], 1)
        angles = torch.cat([ids[..., a, None] * 10000 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
                            for a, d in enumerate(self.axes)], -1)[:, None]

        def rope(t):
            even, odd = t[..., 0::2], t[..., 1::2]
            turned = even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()
            return torch.stack(turned, -1).flatten(-2)

        def attend(q, k, v):
            q, k = rope(q), rope(k)
            p = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
            return (p @ v).transpose(1, 2).flatten(2)

        vec = embed("time_in", sinusoid(x["timesteps"])) + embed("vector_in", x["y"])
        if self.guidance:
            vec = vec + embed("guidance_in", sinusoid(x["guidance"]))
        s = F.silu(vec)
        stream = {"img": linear("img_in", x["img"]), "txt": linear("txt_in", x["txt"])}
        tokens = x["txt"].shape[1]
        for i in range(self.depth):
            p = f"double_blocks.{i}."
            mod = {n: linear(f"{p}{n}_mod.lin", s).chunk(6, -1) for n in stream}
            parts = {n: qkv_of(linear(f"{p}{n}_attn.qkv", modulated(stream[n], mod[n][0], mod[n][1])), f"{p}{n}_attn.norm")
                     for n in stream}
            o = attend(*(torch.cat([parts["txt"][j], parts["img"][j]], 2) for j in range(3)))
            for n, part in (("txt", o[:, :tokens]), ("img", o[:, tokens:])):
                value = stream[n] + mod[n][2][:, None] * linear(f"{p}{n}_attn.proj", part)
                inner = F.gelu(linear(f"{p}{n}_mlp.0", modulated(value, mod[n][3], mod[n][4])), approximate="tanh")
                stream[n] = value + mod[n][5][:, None] * linear(f"{p}{n}_mlp.2", inner)
                if taps is not None:
                    taps[f"tap.float.double.{i}.{n}"] = stream[n]
        value = torch.cat([stream["txt"], stream["img"]], 1)
        for i in range(self.single):
            p = f"single_blocks.{i}."
            shift, scale, gate = linear(p + "modulation.lin", s).chunk(3, -1)
            z = linear(p + "linear1", modulated(value, shift, scale))
            o = attend(*qkv_of(z[..., : 3 * self.hidden], p + "norm"))
            inner = F.gelu(z[..., 3 * self.hidden :], approximate="tanh")
            value = value + gate[:, None] * linear(p + "linear2", torch.cat([o, inner], -1))
            if taps is not None:
                taps[f"tap.float.single.{i}"] = value
        shift, scale = linear("final_layer.adaLN_modulation.1", s).chunk(2, -1)
        return linear("final_layer.linear", modulated(value[:, tokens:], shift, scale))

    def inputs(self, generator, batch, text, grid, reference):
        def ids(rows, cols, first):
            r, c = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
            return torch.stack([torch.full_like(r, first), r, c], -1).reshape(1, -1, 3).expand(batch, -1, -1).double()

        img_ids = ids(*grid, 0)
        if reference:
            img_ids = torch.cat([img_ids, ids(*reference, 1)], 1)
        x = {"img": normal(generator, batch, img_ids.shape[1], self.inch), "img_ids": img_ids,
             "txt": normal(generator, batch, text, self.ctx), "txt_ids": torch.zeros(batch, text, 3, dtype=torch.float64),
             "y": normal(generator, batch, self.vec), "timesteps": torch.rand(batch, generator=generator, dtype=torch.float64),
             "target": normal(generator, batch, grid[0] * grid[1], 64)}
        if self.guidance:
            x["guidance"] = 1 + 3 * torch.rand(batch, generator=generator, dtype=torch.float64)
        return {k: v.float().double() for k, v in x.items()}

    def write(self, folder, seed, batch, text, grid, reference=None, families=True):
        generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
        w = self.random_weights(generator)
        x = self.inputs(generator, batch, text, grid, reference)
        io = dict(x)
        with torch.no_grad():
            io["out.float"] = self.forward(w, x, taps=io)
        base = dict(w)
        adapters = {}
        for name, (rows, cols, in_block) in self.linears().items():
            if not in_block:
                continue
            matrix = w[name + ".weight"]
            scale = (matrix.abs().amax(1, keepdim=True).float() / 127).double()
            base[name + ".weight"] = (matrix.float() / scale.float()).round().clamp(-127, 127) * scale
            adapters[name] = (normal(generator, RANK, cols, std=cols**-0.5).float().double().requires_grad_(),
                              normal(generator, rows, RANK, std=0.1).float().double().requires_grad_())
        with torch.no_grad():
            io["out.int8"] = self.forward(base, x)
        for name, (a, b) in adapters.items():
            io |= {f"lora.{name}.A": a.detach().clone(), f"lora.{name}.B": b.detach().clone()}
        self.train(base, x, adapters, io)
        config = {"hidden": self.hidden, "heads": self.heads, "axes": self.axes, "depth": self.depth,
                  "single": self.single, "ctx": self.ctx, "vec": self.vec, "inch": self.inch, "guidance": self.guidance}
        metadata = {"config": json.dumps(config)}
        save(folder / "model.safetensors", w, metadata)
        save(folder / "io.safetensors", io, {"lora_alpha": str(ALPHA), "lora_rank": str(RANK)})
        if not families:
            return
        prefixed = {"model.diffusion_model." + k: v for k, v in w.items()}
        save(folder / "prefixed.safetensors", prefixed, metadata)
        save(folder / "transformer/diffusion_pytorch_model.safetensors", self.diffusers(w))
        (folder / "transformer/config.json").write_text(json.dumps(
            {"_class_name": "FluxTransformer2DModel", "axes_dims_rope": self.axes, "num_attention_heads": self.heads,
             "attention_head_dim": self.hidden // self.heads, "guidance_embeds": self.guidance}))

    def train(self, base, x, adapters, io):
        values = [t for pair in adapters.values() for t in pair]
        inputs = {k: x[k].clone().requires_grad_() for k in ("img", "txt", "y")}
        optimizer = torch.optim.AdamW(values, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
        history = []
        for step in range(5):
            optimizer.zero_grad()
            out = self.forward(base, x | inputs, adapters)
            loss = (out[:, : x["target"].shape[1]] - x["target"]).square().mean()
            loss.backward()
            if step == 0:
                io |= {"out.int8_lora": out.detach(), "loss.int8_lora": loss.detach().reshape(1)}
                io |= {f"grad.{k}": v.grad.clone() for k, v in inputs.items()}
                for name, (a, b) in adapters.items():
                    io |= {f"grad.{name}.A": a.grad.clone(), f"grad.{name}.B": b.grad.clone()}
            norm = torch.nn.utils.clip_grad_norm_(values, 1.0)
            history.append([loss.item(), norm.item()])
            optimizer.step()
        io["adamw.loss_and_gradnorm"] = torch.tensor(history)
        for name, (a, b) in adapters.items():
            io |= {f"adamw.{name}.A": a.detach(), f"adamw.{name}.B": b.detach()}

    def diffusers(self, w):
        h, out = self.hidden, {}

        def put(bfl, *names, sizes=None):
            for kind in ("weight", "bias"):
                for name, part in zip(names, w[f"{bfl}.{kind}"].split(sizes or [w[f"{bfl}.{kind}"].shape[0]])):
                    out[f"{name}.{kind}"] = part

        put("img_in", "x_embedder")
        put("txt_in", "context_embedder")
        for ours, theirs in (("time_in", "timestep"), ("guidance_in", "guidance"), ("vector_in", "text")):
            if f"{ours}.in_layer.weight" in w:
                put(f"{ours}.in_layer", f"time_text_embed.{theirs}_embedder.linear_1")
                put(f"{ours}.out_layer", f"time_text_embed.{theirs}_embedder.linear_2")
        for i in range(self.depth):
            d = f"transformer_blocks.{i}."
            for s, norm, attn, proj, ff, added in (
                ("img", "norm1", ["to_q", "to_k", "to_v"], "to_out.0", "ff", ""),
                ("txt", "norm1_context", ["add_q_proj", "add_k_proj", "add_v_proj"], "to_add_out", "ff_context", "added_"),
            ):
                p = f"double_blocks.{i}.{s}_"
                put(p + "mod.lin", d + norm + ".linear")
                put(p + "attn.qkv", *(d + "attn." + a for a in attn), sizes=[h] * 3)
                put(p + "attn.proj", d + "attn." + proj)
                put(p + "mlp.0", d + ff + ".net.0.proj")
                put(p + "mlp.2", d + ff + ".net.2")
                for ours, theirs in (("query", "q"), ("key", "k")):
                    out[f"{d}attn.norm_{added}{theirs}.weight"] = w[f"{p}attn.norm.{ours}_norm.scale"]
        for i in range(self.single):
            p, d = f"single_blocks.{i}.", f"single_transformer_blocks.{i}."
            put(p + "modulation.lin", d + "norm.linear")
            put(p + "linear1", d + "attn.to_q", d + "attn.to_k", d + "attn.to_v", d + "proj_mlp", sizes=[h] * 3 + [self.mlp])
            put(p + "linear2", d + "proj_out")
            for ours, theirs in (("query", "q"), ("key", "k")):
                out[f"{d}attn.norm_{theirs}.weight"] = w[f"{p}norm.{ours}_norm.scale"]
        put("final_layer.linear", "proj_out")
        for kind in ("weight", "bias"):  # scale before shift
            out[f"norm_out.linear.{kind}"] = torch.cat(w[f"final_layer.adaLN_modulation.1.{kind}"].chunk(2)[::-1])
        return out


# ---- the autoencoder


class Autoencoder:
    def __init__(self, ch, ch_mult, blocks):
        self.ch, self.mult, self.blocks = ch, ch_mult, blocks

    def write(self, folder, seed, batch, height, width):
        """Weights are drawn when the network first asks for them."""
        generator, w = torch.Generator().manual_seed(seed), {}

        def weight(name, out, cols, kernel):
            if name + ".weight" not in w:
                w[name + ".weight"] = normal(generator, out, cols, kernel, kernel, std=(cols * kernel**2) ** -0.5).float().double()
                w[name + ".bias"] = normal(generator, out, std=0.1).float().double()
            return w[name + ".weight"], w[name + ".bias"]

        def conv(name, x, out, kernel=3, stride=1, padding=1):
            return F.conv2d(x, *weight(name, out, x.shape[1], kernel), stride=stride, padding=padding)

        def norm(name, x):
            if name + ".weight" not in w:
                w[name + ".weight"] = normal(generator, x.shape[1], std=0.1, mean=1.0).float().double()
                w[name + ".bias"] = normal(generator, x.shape[1], std=0.1).float().double()
            return F.group_norm(x, 32, w[name + ".weight"], w[name + ".bias"], 1e-6)

        def res(name, x, out):
            y = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", x)), out)
            y = conv(f"{name}.conv2", F.silu(norm(f"{name}.norm2", y)), out)
            return y + (x if x.shape[1] == out else conv(f"{name}.nin_shortcut", x, out, 1, 1, 0))

        def middle(name, x):
            c = x.shape[1]
            x = res(f"{name}.block_1", x, c)
            n = norm(f"{name}.attn_1.norm", x)
            q, k, v = (conv(f"{name}.attn_1.{p}", n, c, 1, 1, 0).flatten(2) for p in "qkv")
            p = (q.transpose(1, 2) @ k / math.sqrt(c)).softmax(-1)
            o = (v @ p.transpose(1, 2)).view_as(x)
            return res(f"{name}.block_2", x + conv(f"{name}.attn_1.proj_out", o, c, 1, 1, 0), c)

        last = len(self.mult) - 1
        image = normal(generator, batch, 3, height, width, std=0.5).clamp(-1, 1).float().double()
        x = conv("encoder.conv_in", image, self.ch)
        for level, mult in enumerate(self.mult):
            for b in range(self.blocks):
                x = res(f"encoder.down.{level}.block.{b}", x, self.ch * mult)
            if level < last:
                x = conv(f"encoder.down.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), x.shape[1], stride=2, padding=0)
        x = F.silu(norm("encoder.norm_out", middle("encoder.mid", x)))
        moments = conv("encoder.conv_out", x, 32)
        z = normal(generator, *moments.chunk(2, 1)[0].shape).float().double()
        x = middle("decoder.mid", conv("decoder.conv_in", z / 0.3611 + 0.1159, self.ch * self.mult[-1]))
        for level in reversed(range(last + 1)):
            for b in range(self.blocks + 1):
                x = res(f"decoder.up.{level}.block.{b}", x, self.ch * self.mult[level])
            if level > 0:
                x = conv(f"decoder.up.{level}.upsample.conv", F.interpolate(x, scale_factor=2, mode="nearest"), x.shape[1])
        decoded = conv("decoder.conv_out", F.silu(norm("decoder.norm_out", x)), 3)
        save(folder / "model.safetensors", w,
             {"ch": str(self.ch), "ch_mult": json.dumps(self.mult), "num_res_blocks": str(self.blocks)})
        save(folder / "io.safetensors", {"image": image, "moments": moments, "z": z, "decoded": decoded,
                                         "latent_mean": 0.3611 * (moments.chunk(2, 1)[0] - 0.1159)})


# ---- the text encoders, by transformers


def write_clip(folder, seed, batch, **sizes):
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    vocabulary = sizes["vocab_size"]
    config = CLIPTextConfig(max_position_embeddings=77, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
                            pad_token_id=vocabulary - 1, **sizes)
    model = CLIPTextModel(config).eval()
    spread(model)
    ids = torch.randint(0, vocabulary - 2, (batch, 77))
    ids[:, 0] = vocabulary - 2
    for b in range(batch):
        ids[b, 5 + 9 * b :] = vocabulary - 1
    with torch.no_grad():
        out = model(ids)
    write_encoder(folder, model, {"ids": ids, "last_hidden": out.last_hidden_state, "pooled": out.pooler_output})


def write_t5(folder, seed, batch, length, **sizes):
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    model = T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", is_encoder_decoder=False, **sizes)).eval()
    spread(model)
    ids = torch.randint(2, sizes["vocab_size"], (batch, length))
    ids[:, -4:] = 0
    with torch.no_grad():
        out = model(ids)
    write_encoder(folder, model, {"ids": ids, "last_hidden": out.last_hidden_state})


def spread(model):
    """Vectors that start as all ones or zeros would hide mistakes."""
    for p in model.parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, mean=p.mean().item(), std=0.1)


def write_encoder(folder, model, io):
    tensors = {k: v for k, v in model.state_dict().items() if "position_ids" not in k and k != "encoder.embed_tokens.weight"}
    if model.config.model_type.startswith("clip"):  # newer versions of transformers leave the prefix out
        tensors = {"text_model." + k.removeprefix("text_model."): v for k, v in tensors.items()}
    save(folder / "model.safetensors", tensors, {"config": model.config.to_json_string(use_diff=False)})
    save(folder / "io.safetensors", io)


def write_full_width(folder):
    """Yields (name, model, io)."""
    model = Flux(3072, 24, [16, 56, 56], 2, 2, 4096, 768)
    model.write(folder, 0, batch=1, text=512, grid=(32, 32), families=False)
    yield "transformer of full width", folder / "model.safetensors", folder / "io.safetensors"


def write_all(folder):
    """Yields (name, model, io)."""
    flux = {
        "guidance": (Flux(96, 3, [4, 12, 16], 1, 2, 40, 24), dict(batch=3, text=11, grid=(5, 3))),
        "no-guidance": (Flux(64, 2, [8, 12, 12], 3, 1, 56, 16, guidance=False), dict(batch=2, text=4, grid=(3, 7))),
        "reference": (Flux(128, 4, [8, 12, 12], 2, 2, 48, 32), dict(batch=2, text=9, grid=(4, 4), reference=(3, 5))),
        "reference-no-guidance": (Flux(80, 2, [8, 16, 16], 2, 3, 24, 20, guidance=False),
                                  dict(batch=1, text=1, grid=(2, 9), reference=(4, 2))),
        "wide-head": (Flux(256, 2, [16, 56, 56], 1, 1, 64, 48), dict(batch=2, text=16, grid=(8, 6))),
        "fill-channels": (Flux(48, 2, [4, 8, 12], 2, 2, 32, 16, inch=384), dict(batch=2, text=6, grid=(3, 4))),
        "doubles-only": (Flux(64, 4, [4, 6, 6], 2, 0, 32, 16), dict(batch=2, text=5, grid=(4, 3))),
    }
    for seed, (name, (model, sizes)) in enumerate(flux.items()):
        model.write(folder / name, seed, **sizes)
        for file in ("model.safetensors", "prefixed.safetensors", "transformer"):
            yield f"transformer {name}, {file}", folder / name / file, folder / name / "io.safetensors"
    for seed, (sizes, picture) in enumerate([((32, [1, 2, 4], 2), (2, 24, 40)), ((64, [1, 2, 2, 4], 1), (1, 32, 64))]):
        place = folder / f"autoencoder-{seed}"
        Autoencoder(*sizes).write(place, seed, *picture)
        yield f"autoencoder {sizes}", place / "model.safetensors", place / "io.safetensors"
    for seed, sizes in enumerate([(64, 2, 4, 160), (96, 8, 2, 384)]):
        place, keys = folder / f"clip-{seed}", ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
        write_clip(place, seed, 2 + seed, vocab_size=200 + seed, **dict(zip(keys, sizes)))
        yield f"CLIP {sizes}", place / "model.safetensors", place / "io.safetensors"
    for seed, sizes in enumerate([(64, 8, 24, 2, 96), (40, 16, 3, 4, 112)]):
        place, keys = folder / f"t5-{seed}", ("d_model", "d_kv", "num_heads", "num_layers", "d_ff")
        write_t5(place, seed, 1 + seed, 300 - 270 * seed, vocab_size=150, **dict(zip(keys, sizes)))
        yield f"T5 {sizes}", place / "model.safetensors", place / "io.safetensors"


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--keep", type=Path, help="leave models and results in this folder")
    options.add_argument("--full-width", action="store_true", help="one transformer of FLUX.1-dev's width")
    options.add_argument("--device", default="cpu", help="where PyTorch computes")
    options.add_argument("--bench", nargs="+", default=[TOP / "build/release/bin/squareq-bench", "parity"],
                         help="squareq-bench parity and its options")
    given = options.parse_args()
    torch.set_default_device(given.device)
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        write = write_full_width if given.full_width else write_all
        for name, model, io in write(given.keep or Path(temporary)):
            run = subprocess.run([*given.bench, model, io], capture_output=True, text=True)
            worst = "; ".join((run.stdout + run.stderr).strip().splitlines()[-2:])
            print(f"{'ok' if run.returncode == 0 else 'FAILED'}  {name}: {' '.join(worst.split())}")
            failed += run.returncode != 0
    sys.exit(f"{failed} failed" if failed else 0)


main()
