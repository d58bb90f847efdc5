// Low-rank adapters as data: which linears they sit on, and one contiguous float32 buffer each for parameters,
// gradients and the two moments of AdamW. Effective weight: W + scale * B A on the rows covered.
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
  std::int64_t rank = 0;
  double scale = 1.0;  // alpha / rank, times the strength of a frozen adapter
  bool trained = true;

  std::int64_t count() const { return rank * (in + rows); }  // parameters
};

enum class LoraInit { kKaiming, kGaussian };

class LoraSet {
 public:
  LoraSet() = default;
  explicit LoraSet(std::vector<LoraTarget> targets);

  const std::vector<LoraTarget>& targets() const { return targets_; }
  std::int64_t trained_count() const { return trained_count_; }
  std::int64_t count() const { return count_; }
  bool trains(const std::string& linear) const;

  // Trained adapters come first in every buffer. Gradients and moments exist only for those.
  void layout(Carver& carver);
  View parameters() const { return parameters_; }  // [1, 1, count()]
  View gradients() const { return gradients_; }    // [1, 1, trained_count()]
  View mean() const { return mean_; }
  View variance() const { return variance_; }

  View a(std::size_t target) const;   // [1, r, in]
  View b(std::size_t target) const;   // [1, rows, r]
  View da(std::size_t target) const;  // empty for a frozen adapter
  View db(std::size_t target) const;

  // The adapters on one linear, in the order of the targets. Call after layout.
  std::vector<LoraBranch> branches(const std::string& linear) const;

  // B = 0; A uniform in +-1/sqrt(in) (kaiming, as kohya) or normal with deviation 1/rank (gaussian, as diffusers).
  // Trained adapters only; the k-th target draws from its own stream. `upload` brings a host array into a view.
  void initialise(LoraInit init, std::uint64_t seed,
                  const std::function<void(const std::vector<float>&, const View&)>& upload);

 private:
  std::vector<LoraTarget> targets_;
  std::vector<std::int64_t> offsets_;  // of A in the buffers; B follows
  std::map<std::string, std::vector<std::size_t>> by_linear_;
  std::int64_t trained_count_ = 0;
  std::int64_t count_ = 0;
  View parameters_, gradients_, mean_, variance_;
};

}  // namespace squareq
