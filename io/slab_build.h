// Makes slabs: from a checkpoint, or random ones of a given shape.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "io/slab.h"

namespace squareq {

class Checkpoint;

struct SlabProgress {
  std::uint64_t done = 0;  // bytes of the finished file
  std::uint64_t total = 0;
  std::uint64_t resumed = 0;  // of `done`, left by an earlier build that was interrupted
  std::string block;          // or file, finished or growing last
};

struct SlabOptions {
  Codec codec = Codec::kInt8Rows;                     // of the linear layers inside the blocks
  int threads = 0;                                    // 0: one per hardware thread
  std::function<void(const SlabProgress&)> progress;  // after every block; may throw to interrupt the build
};

// Writes the slab of the network in `checkpoint` to `path`. The file is built as `path`.partial, finished blocks are
// noted in `path`.partial.journal; called again with the same source and options after an interruption, it goes on
// where it stopped, and the result is byte-identical. Memory: one layer in float at most.
// Throws FormatError if a tensor is missing, misshapen, or holds NaN or infinity (file, tensor and row are named);
// FileError if the file cannot be written, or another process is writing it.
void build_slab(const Checkpoint& checkpoint, const SlabShape& shape, const std::string& path,
                const SlabOptions& options = {});

struct SynthOptions {
  std::uint64_t seed = 0;
  int threads = 0;
  std::function<void(const SlabProgress&)> progress;  // after every block or tensor
};

// flux-dev, flux-schnell, t5-xxl or mini (a trained miniature's shape). ConfigError lists them for another name.
SlabShape named_shape(const std::string& name);

// A random slab, its layers quantised to INT8: deterministic from the seed, and scaled so that activations stay of
// order one through all blocks.
void synthesize_slab(const SlabShape& shape, const std::string& path, const SynthOptions& options = {});

// The same weights before quantising, as a BF16 checkpoint in diffusers layout: `folder`/transformer or
// `folder`/text_encoder_2 with config.json, in shards of at most `shard_bytes` with their index. Throws FileError if
// that folder holds files already.
void synthesize_checkpoint(const SlabShape& shape, const std::string& folder, const SynthOptions& options = {},
                           std::uint64_t shard_bytes = 10'000'000'000);

}  // namespace squareq
