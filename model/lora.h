// Low-rank adapters as data: which linears they sit on, and one contiguous buffer each for parameters, gradients and
// what an optimizer keeps of them. Effective weight: W + scale * B A on the rows covered.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/base/carver.h"
#include "kernels/ops.h"

namespace squareq {

struct LoraTarget {
  std::string linear;  // "double_blocks.0.img_attn.qkv"
  std::int64_t row_begin = 0;
  std::int64_t rows = 0;
  std::int64_t in = 0;
  std::int64_t out = 0;  // of the whole linear
  std::int64_t rank = 0;
  double scale = 1.0;  // alpha / rank, times the strength of a frozen adapter
  bool trained = true;

  std::int64_t count() const { return rank * (in + rows); }  // parameters
};

// What is kept beside parameters and gradients.
struct LoraMemory {
  bool eight_bit_moments = false;  // see AdamW in kernels/ops.h
  bool average = false;            // of the parameters over the steps
  std::int64_t dropout_batch = 0;  // samples that have a factor for each rank; 0: there is no rank dropout
  DType stacks = DType::F32;       // of LoraBranch::stacked_a and stacked_b; F32: there are none
};

enum class LoraInit { kKaiming, kGaussian };

class LoraSet {
 public:
  LoraSet() = default;
  explicit LoraSet(std::vector<LoraTarget> targets, LoraMemory memory = {});

  const std::vector<LoraTarget>& targets() const { return targets_; }
  std::int64_t trained_count() const { return trained_count_; }
  std::int64_t count() const { return count_; }
  bool trains(const std::string& linear) const;

  // Trained adapters come first in every buffer. Gradients and moments exist only for those.
  void layout(Carver& carver);
  View parameters() const { return parameters_; }                                            // [1, 1, count()]
  View gradients() const { return gradients_; }                                              // [1, 1, trained_count()]
  View trained() const { return View(parameters_.data, DType::F32, 1, 1, trained_count_); }  // of parameters()
  View average() const { return average_; }                                                  // as trained(), or empty
  View keep() const { return keep_; }  // [B, 1, trained ranks] in the order of the targets, or empty
  std::int64_t trained_ranks() const { return trained_ranks_; }

  // An update of the trained adapters with the moments kept here; the caller fills in the rates.
  AdamW adamw() const;

  // All that a run has learnt, by name: parameters, moments and average. Padded to multiples of 4 bytes in memory.
  std::vector<std::pair<std::string, View>> learnt() const;

  View a(std::size_t target) const;   // [1, r, in]
  View b(std::size_t target) const;   // [1, rows, r]
  View da(std::size_t target) const;  // empty for a frozen adapter
  View db(std::size_t target) const;

  // The adapters on one linear, in the order of the targets. Call after layout; after a change of parameters() their
  // stacks have to be written again (Ops::stack_adapters).
  std::vector<LoraBranch> branches(const std::string& linear) const;
  std::vector<LoraBranch> branches() const;  // of all linears

  // B = 0; A uniform in +-1/sqrt(in) (kaiming, as kohya) or normal with deviation 1/rank (gaussian, as diffusers).
  // Trained adapters only; the k-th target draws from its own stream. `upload` brings a host array into a view.
  void initialise(LoraInit init, std::uint64_t seed,
                  const std::function<void(const std::vector<float>&, const View&)>& upload);

 private:
  LoraBranch branch(std::size_t target) const;

  std::vector<LoraTarget> targets_;
  LoraMemory memory_;
  std::vector<std::int64_t> offsets_;       // of A in the buffers; B follows
  std::vector<std::int64_t> rank_offsets_;  // in keep_
  std::map<std::string, std::vector<std::size_t>> by_linear_;
  std::vector<std::pair<View, View>> stacks_;  // of A and B of each target, or empty
  std::int64_t trained_count_ = 0;
  std::int64_t count_ = 0;
  std::int64_t trained_ranks_ = 0;
  View parameters_, gradients_, mean_, variance_, mean_scale_, variance_scale_, average_, keep_;
};

}  // namespace squareq
