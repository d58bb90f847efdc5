#!/usr/bin/env python3
"""Recomputes from the rules of docs/data.md what the first steps of a run train on, and compares.

    python3 -m venv venv && venv/bin/pip install numpy pillow
    venv/bin/python scripts/check-data.py [--bench build/release/bin/squareq-bench] [--steps 12]

Makes pictures of many shapes with captions, has `squareq-bench data` train on them with the bundled miniature, and
computes buckets, order, captions, mirroring, crops, the autoencoder's latents with their noise, the noise and the noise
levels again, sharing no code with the program.
"""
import argparse
import hashlib
import json
import math
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

TOP = Path(__file__).resolve().parent.parent
MODEL = TOP / "assets" / "FLUX-mini"
SEED, BATCH = 7, 2
RESOLUTIONS, STEP = [64, 128], 16
ORDERS, KEPT, DROPOUT = 3, 1, 0.3
REPEATS = [2, 1]
LIMIT = 2e-4  # relative L2; sums of convolutions in another order
NOISE, TIMESTEP, SHUFFLE, LATENT, FLIP, CAPTION, TAG_ORDER = 2, 3, 4, 5, 20, 21, 22
M32, M64 = 2**32 - 1, 2**64 - 1


def mix(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & M64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & M64
    return z ^ z >> 31


class Stream:
    """Random numbers of one key."""

    def __init__(self, seed, purpose, step=0, micro=0, sample=0, module=0):
        self.key = mix(seed ^ mix((purpose << 32 | module) + 0x9E3779B97F4A7C15 & M64))
        self.rest = [step, micro, sample]
        self.block, self.left, self.spare = 0, [], None

    def bits(self):
        if not self.left:
            c, k = [self.block, *self.rest], [self.key & M32, self.key >> 32]
            for _ in range(10):
                p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
                c = [q >> 32 ^ c[1] ^ k[0], q & M32, p >> 32 ^ c[3] ^ k[1], p & M32]
                k = [k[0] + 0x9E3779B9 & M32, k[1] + 0xBB67AE85 & M32]
            self.block += 1
            self.left = c
        return self.left.pop(0)

    def uniform(self):
        return (self.bits() + 0.5) / 2**32

    def below(self, n):
        limit = M32 - M32 % n
        while (value := self.bits()) >= limit:
            pass
        return value % n

    def normal(self):
        if self.spare is not None:
            value, self.spare = self.spare, None
            return value
        radius, angle = math.sqrt(-2 * math.log(self.uniform())), 2 * math.pi * self.uniform()
        self.spare = radius * math.sin(angle)
        return radius * math.cos(angle)

    def normals(self, *shape):
        return np.array([self.normal() for _ in range(math.prod(shape))]).reshape(shape)

    def shuffle(self, items):
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]
        return items


def buckets_of(resolution):
    found = []
    for width in range(STEP, resolution * resolution // STEP + 1, STEP):
        height = resolution * resolution // width // STEP * STEP
        if height and max(width, height) <= 4 * min(width, height):
            found.append((width, height))
    return found


def nearest(width, height, resolution):
    def distance(bucket):
        ratio = Fraction(bucket[0] * height, bucket[1] * width)
        return max(ratio, 1 / ratio), -bucket[0] * bucket[1], -bucket[0]
    return min(buckets_of(resolution), key=distance)


def taps(size, begin, length, out):
    """Matrix [out, size] of the resizing filter."""
    step = length / out
    stretch = max(step, 1.0)
    matrix = np.zeros((out, size))
    for i in range(out):
        x = np.abs((np.arange(size) - (begin + (i + 0.5) * step - 0.5)) / stretch)
        row = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
        matrix[i] = row / row.sum()
    return matrix


def crop(pixels, bucket):
    height, width = pixels.shape[:2]
    scale = min(width / bucket[0], height / bucket[1])
    used = scale * bucket[0], scale * bucket[1]
    columns = taps(width, (width - used[0]) / 2, used[0], bucket[0])
    rows = taps(height, (height - used[1]) / 2, used[1], bucket[1])
    result = np.einsum("yh,hwc,xw->yxc", rows, pixels.astype(np.float64), columns)
    return np.floor(np.clip(result, 0, 255) + 0.5)


def read_safetensors(path):
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, info in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + o for o in info["data_offsets"])
        if info["dtype"] == "BF16":
            values = (np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(data[begin:end], {"F32": np.float32, "F16": np.float16}[info["dtype"]])
        tensors[name] = values.astype(np.float64).reshape(info["shape"])
    return tensors


class Encoder:
    """The encoder of FLUX's autoencoder; images are [channels, height, width]."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.w = read_safetensors(next(folder.glob("*.safetensors")))

    def conv(self, x, name, stride=1, pad=(1, 1)):
        weight, bias = self.w[name + ".weight"], self.w[name + ".bias"]
        k = weight.shape[-1]
        x = np.pad(x, ((0, 0), pad, pad)) if k > 1 else x
        windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))[:, ::stride, ::stride]
        return np.einsum("cyxij,ocij->oyx", windows, weight, optimize=True) + bias[:, None, None]

    def norm(self, x, name, silu=True):
        groups = x.reshape(self.config["norm_num_groups"], -1)
        groups = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-6)
        y = groups.reshape(x.shape) * self.w[name + ".weight"][:, None, None] + self.w[name + ".bias"][:, None, None]
        return y / (1 + np.exp(-y)) if silu else y

    def resnet(self, x, name):
        y = self.conv(self.norm(x, name + ".norm1"), name + ".conv1")
        y = self.conv(self.norm(y, name + ".norm2"), name + ".conv2")
        shortcut = name + ".conv_shortcut"
        return y + (self.conv(x, shortcut) if shortcut + ".weight" in self.w else x)

    def attention(self, x, name):
        y = self.norm(x, name + ".group_norm", silu=False).reshape(len(x), -1).T
        q, k, v = (y @ self.w[f"{name}.{part}.weight"].T + self.w[f"{name}.{part}.bias"]
                   for part in ("to_q", "to_k", "to_v"))
        scores = q @ k.T / math.sqrt(len(x))
        scores = np.exp(scores - scores.max(1, keepdims=True))
        y = scores / scores.sum(1, keepdims=True) @ v
        y = y @ self.w[name + ".to_out.0.weight"].T + self.w[name + ".to_out.0.bias"]
        return x + y.T.reshape(x.shape)

    def moments(self, x):
        levels = len(self.config["block_out_channels"])
        x = self.conv(x, "encoder.conv_in")
        for level in range(levels):
            for block in range(self.config["layers_per_block"]):
                x = self.resnet(x, f"encoder.down_blocks.{level}.resnets.{block}")
            if level + 1 < levels:
                x = self.conv(x, f"encoder.down_blocks.{level}.downsamplers.0.conv", stride=2, pad=(0, 1))
        x = self.resnet(x, "encoder.mid_block.resnets.0")
        x = self.attention(x, "encoder.mid_block.attentions.0")
        x = self.resnet(x, "encoder.mid_block.resnets.1")
        return self.conv(self.norm(x, "encoder.conv_norm_out"), "encoder.conv_out")

    def latent(self, image, digest, mirrored):
        """Packed [tokens, features] of pixels [height, width, 3] from 0 to 255."""
        moments = self.moments(np.moveaxis(image, 2, 0) / 127.5 - 1)
        mean, log_variance = np.split(moments, 2)
        noise = Stream(int(digest[:16], 16), LATENT, module=int(mirrored)).normals(*mean.shape)
        z = mean + np.exp(np.clip(log_variance, -30, 20) / 2) * noise
        z = self.config["scaling_factor"] * (z - self.config["shift_factor"])
        c, h, w = z.shape
        return z.reshape(c, h // 2, 2, w // 2, 2).transpose(1, 3, 0, 2, 4).reshape(h // 2 * w // 2, 4 * c)


def make_pictures(folder):
    generator = np.random.default_rng(3)
    sizes = [(200, 150), (150, 200), (128, 128), (90, 70), (300, 100), (129, 257), (64, 64)]
    for i, (width, height) in enumerate(sizes):
        place = folder / str(i % 2)
        place.mkdir(exist_ok=True)
        small = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((width, height), Image.BICUBIC)
        name = f"picture {i}"
        if i == 2:
            picture.save(place / f"{name}.webp", lossless=True)
        else:
            picture.save(place / f"{name}.png")
        (place / f"{name}.txt").write_text(f"number {i}, red,blue , green, small\n")


class Samples:
    """Everything that can be drawn, in the program's order."""

    def __init__(self, folder):
        self.pictures = []  # path, folder number
        for number in range(2):
            files = [p for p in (folder / str(number)).iterdir() if p.suffix != ".txt"]
            self.pictures += [(path, number) for path in sorted(files, key=lambda p: p.name.encode())]
        uses = []
        for index, (path, _) in enumerate(self.pictures):
            width, height = Image.open(path).size
            for resolution in RESOLUTIONS:
                bucket = nearest(width, height, resolution)
                if width >= bucket[0] and height >= bucket[1] and (index, bucket) not in uses:
                    uses.append((index, bucket))
        self.buckets = sorted({bucket for _, bucket in uses}, key=lambda b: (b[0] * b[1], b[0]))
        self.samples = [(index, self.buckets.index(bucket)) for index, bucket in uses]
        self.entries = [[] for _ in self.buckets]
        for number, (index, bucket) in enumerate(self.samples):
            self.entries[bucket] += [number] * REPEATS[self.pictures[index][1]]

    def batches(self):
        """Bucket and samples of each batch of the run, without end."""
        epoch = 0
        while True:
            turns = []
            for bucket, entries in enumerate(self.entries):
                n = len(entries)
                turns += [bucket] * ((epoch + 1) * n // BATCH - epoch * n // BATCH)
            Stream(SEED, SHUFFLE, step=epoch, micro=1).shuffle(turns)
            given = [epoch * len(entries) // BATCH for entries in self.entries]
            for bucket in turns:
                entries = self.entries[bucket]
                batch = []
                for j in range(given[bucket] * BATCH, (given[bucket] + 1) * BATCH):
                    permutation = list(range(len(entries)))
                    Stream(SEED, SHUFFLE, step=j // len(entries), module=bucket).shuffle(permutation)
                    batch.append(entries[permutation[j % len(entries)]])
                given[bucket] += 1
                yield bucket, batch
            epoch += 1

    def caption(self, picture, draw):
        stream = Stream(SEED, CAPTION, step=draw >> 32, sample=draw & M32)
        if stream.uniform() < DROPOUT:
            return ""
        order = stream.below(ORDERS)
        tags = [t.strip() for t in self.pictures[picture][0].with_suffix(".txt").read_text().split(",")]
        return ", ".join(tags[:KEPT] + Stream(SEED, TAG_ORDER, step=order, sample=picture).shuffle(tags[KEPT:]))


def sigma_of(stream, tokens):
    schedule = json.loads((MODEL / "scheduler" / "scheduler_config.json").read_text())
    value = 1 / (1 + math.exp(-stream.normal()))
    first, last = schedule["base_image_seq_len"], schedule["max_image_seq_len"]
    slope = (schedule["max_shift"] - schedule["base_shift"]) / (last - first)
    s = math.exp(schedule["base_shift"] + slope * (tokens - first))
    return s * value / (1 + (s - 1) * value)


def error(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default=TOP / "build/release/bin/squareq-bench")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder)
        config = {"model": str(MODEL), "output_dir": "out", "cache_dir": "cache", "device": "cpu",
                  "data": {"folders": [{"folder": str(i), "repeats": REPEATS[i]} for i in range(2)],
                           "resolution": RESOLUTIONS, "bucket_step": STEP, "flip": True, "caption_dropout": DROPOUT,
                           "tag_orders": ORDERS, "keep_tags": KEPT},
                  "training": {"seed": SEED, "batch_size": BATCH, "timestep_sampling": "flux_shift"}}
        (folder / "run.json").write_text(json.dumps(config))
        subprocess.run([options.bench, "data", folder / "run.json", "--steps", str(options.steps), "-o",
                        folder / "recorded.safetensors"], check=True, stderr=subprocess.DEVNULL)
        recorded = read_safetensors(folder / "recorded.safetensors")
        samples, encoder = Samples(folder), Encoder(MODEL / "vae")
        worst = {"latent": 0.0, "noise": 0.0, "sigma": 0.0}
        texts, latents = {}, {}
        used, mirrored, faults = set(), 0, []
        for step, (bucket, batch) in zip(range(1, options.steps + 1), samples.batches()):
            size = samples.buckets[bucket]
            tokens = size[0] * size[1] // 256
            noisy, velocity = recorded[f"{step}.noisy"], recorded[f"{step}.velocity"]
            if noisy.shape[1] != tokens:
                sys.exit(f"step {step}: {noisy.shape[1]} tokens, expected {tokens} of bucket {size}")
            for slot, number in enumerate(batch):
                picture = samples.samples[number][0]
                draw = (step - 1) * BATCH + slot
                flip = Stream(SEED, FLIP, step=draw >> 32, sample=draw & M32).uniform() < 0.5
                if (number, flip) not in latents:
                    path = samples.pictures[picture][0]
                    image = crop(np.asarray(Image.open(path).convert("RGB")), size)
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    latents[number, flip] = encoder.latent(image[:, ::-1] if flip else image, digest, flip)
                sigma = sigma_of(Stream(SEED, TIMESTEP, step=step, sample=draw), tokens)
                noise = Stream(SEED, NOISE, step=step, sample=draw).normals(*noisy.shape[1:])
                x, v, s = noisy[slot], velocity[slot], recorded[f"{step}.sigma"][slot]
                errors = {"latent": error(x - s * v, latents[number, flip]), "noise": error(x + (1 - s) * v, noise),
                          "sigma": abs(s - sigma) / sigma}
                worst = {key: max(worst[key], value) for key, value in errors.items()}
                texts.setdefault(samples.caption(picture, draw), []).append(recorded[f"{step}.text"][slot])
                used.add(size)
                mirrored += flip
                faults += [f"step {step}, slot {slot}: {key} differs by {value:.1e}" for key, value in errors.items()
                           if not value <= LIMIT]
        for caption, states in texts.items():
            same = all(np.array_equal(states[0], other) for other in states[1:])
            others = any(np.array_equal(states[0], s[0]) for c, s in texts.items() if c != caption)
            if not same or others:
                faults.append(f"text states of '{caption}' are not its own")
        print(f"{options.steps} batches of {BATCH} in {len(used)} of {len(samples.buckets)} buckets, {mirrored} mirrored, "
              f"{len(texts)} texts; largest errors: " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))
        print("\n".join(faults) if faults else "as documented")
        return 1 if faults else 0


sys.exit(main())
